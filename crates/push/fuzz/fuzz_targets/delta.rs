//! Whatever arrives as a delta becomes the layer it promises, or an error that leaves nothing behind.
#![no_main]

use appliance_push::change::{BlobRef, Digest, Repository};
use appliance_push::delta::Recipe;
use appliance_push::store::{Limits, Store};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(recipe) = Recipe::read(data) {
        let mut again = Vec::new();
        recipe.write(&mut again).expect("memory can be written");
        assert!(data.starts_with(&again));
    }
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits { max_blob: 1 << 20, reserve: 0, ..Limits::default() };
    let store = Store::open(directory.path(), limits).expect("a store");
    let repository = Repository::parse("fuzz/app").expect("name");
    let wanted = BlobRef { digest: Digest::of(data), size: data.len() as u64 };
    if store.assemble(&repository, &wanted, data).is_ok() {
        assert_eq!(store.blob_size(&wanted.digest).expect("a look"), Some(wanted.size));
    }
    assert_eq!(directory.path().join("temporary").read_dir().expect("list").count(), 0);
});
