//! Whatever comes out of `docker save` becomes blobs with true digests, or an error; nothing is left in the scratch
//! directory.
#![no_main]

use appliance_push::change::Digest;
use appliance_push::image::{Cache, Place, PrepareOptions, Source, prepare};
use appliance_push::store::{Compression, HaveAnswer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let scratch = tempfile::tempdir().expect("directory");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let have = HaveAnswer {
        blobs: Vec::new(),
        layers: Default::default(),
        accepts: vec![Compression::Gzip, Compression::None],
        available: u64::MAX,
    };
    let options = PrepareOptions { scratch: scratch.path().to_owned(), threads: 1, platform: None, name: None, id: None, ask: None };
    let source = Source::Archive(Box::new(std::io::Cursor::new(data.to_vec())));
    if let Ok((prepared, _)) = runtime.block_on(prepare(source, have, Cache::default(), options)) {
        for (blob, place) in prepared.to_send() {
            let bytes = match place {
                Place::Memory(bytes) => bytes.to_vec(),
                Place::File(file) => std::fs::read(&file.path).expect("file"),
                Place::OnHost | Place::Delta(_) => panic!("the host has nothing"),
            };
            assert_eq!((Digest::of(&bytes), bytes.len() as u64), (blob.digest, blob.size));
        }
    }
    assert_eq!(scratch.path().read_dir().expect("list").count(), 0);
});
