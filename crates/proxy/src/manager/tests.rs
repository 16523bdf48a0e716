//! What a test over sockets would have to wait a year for.

use super::*;
use crate::access_log::AccessLog;
use crate::options::Store;
use crate::spool::Spools;

#[tokio::test]
async fn a_leaf_of_the_local_ca_is_signed_anew_long_before_it_ends() {
    let home = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared::new(
        1,
        None,
        AccessLog::start(None).unwrap(),
        Spools::new(home.path().join("spool")),
        std::time::Instant::now(),
    ));
    let disk = Disk::new(&Store::Directory(home.path().to_owned()));
    let manager = Manager::start(Arc::clone(&shared), disk, None).await.unwrap();
    let service: Service = serde_json::from_str(
        r#"{"name":"a","hosts":["a.localhost"],"upstreams":["127.0.0.1:1"],"tls":{"certificate":"local_ca"}}"#,
    )
    .unwrap();
    manager.put_service(service).await.unwrap();
    let shown = || {
        let table = shared.table.load();
        let key = table.certificates.get(Some("a.localhost")).unwrap();
        key.cert[0].clone()
    };
    let end = |leaf: &[u8]| {
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf).unwrap();
        leaf.validity().not_after.timestamp()
    };
    let first = shown();
    let now = SystemTime::now();
    let days = |days: u64| now + Duration::from_secs(86_400 * days);
    manager.renew_leaves(days(200)).await;
    assert_eq!(shown(), first, "it has half its life before it");
    manager.renew_leaves(days(270)).await;
    let second = shown();
    assert_eq!((end(&second) - end(&first)) / 86_400, 270);
    assert!(
        manager.snapshot().await.services.len() == 1 && manager.problems().await.is_empty(),
        "nothing else changed"
    );
    manager.renew_leaves(days(271)).await;
    assert_eq!(shown(), second);
}
