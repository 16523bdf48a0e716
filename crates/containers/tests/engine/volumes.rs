//! What outlives a container, and what Docker itself says about one.

use appliance_containers::Engine as _;
use appliance_containers::engine::State;
use tokio::sync::mpsc;

use crate::support::{with_engine, within};

#[tokio::test]
async fn a_container_can_go_without_the_volumes_that_have_no_name() {
    with_engine(|bench| async move {
        let docker = &bench.docker;
        let mut spec = bench.spec("keeper", "echo kept > /data/word");
        spec.volumes = vec!["/data".to_owned()];
        let (sender, _unread) = mpsc::channel(8);
        let exit = within(60, "the command", docker.run_once(&spec, sender)).await;
        assert_eq!(exit.expect("it ran").code, 0);

        let told = docker
            .description(&spec.name)
            .await
            .expect("an answer")
            .expect("a container");
        let mount = &told["Mounts"][0];
        assert_eq!(mount["Destination"], "/data");
        let volume = mount["Name"].as_str().expect("a name").to_owned();
        assert!(
            docker
                .remove_keeping_volumes(&spec.name, true)
                .await
                .expect("removed")
        );
        assert!(docker.description(&spec.name).await.expect("an answer").is_none());

        let mut reader = bench.spec("reader", "grep -q kept /data/word");
        reader.volumes = vec![format!("{volume}:/data")];
        let (sender, _unread) = mpsc::channel(8);
        let exit = within(60, "the command", docker.run_once(&reader, sender)).await;
        assert_eq!(exit.expect("it ran").code, 0, "the volume is the same");
        assert!(
            docker.remove_volume(&volume).await.is_err(),
            "a volume in use is a conflict"
        );
        let found = docker
            .inspect(&reader.name)
            .await
            .expect("an answer")
            .expect("there");
        assert_eq!(found.state, State::Exited);
        docker
            .remove_keeping_volumes(&reader.name, true)
            .await
            .expect("removed");
        assert!(docker.has_volume(&volume).await.expect("an answer"));
        assert!(docker.remove_volume(&volume).await.expect("removed"));
        assert!(!docker.has_volume(&volume).await.expect("an answer"));
        assert!(!docker.remove_volume(&volume).await.expect("an answer"));
    })
    .await;
}
