//! Images: in and out, pulled and refused.

use appliance_containers::engine::{Credentials, PullRequest};
use appliance_containers::{Engine as _, EngineError};
use futures_util::stream::{StreamExt as _, TryStreamExt as _};

use crate::support::{self, with_engine, within};

#[tokio::test]
async fn images_go_out_and_come_in_by_content() {
    with_engine(|bench| async move {
        let docker = &bench.docker;
        let tag = format!("{}-image", bench.name);
        docker.tag_image(&bench.image, &tag, "v1").await.expect("tag");
        let reference = format!("{tag}:v1");
        let image = docker
            .inspect_image(&reference)
            .await
            .expect("inspect")
            .expect("it exists");
        assert_eq!(image.id, bench.image);
        assert_eq!((image.os.as_str(), image.diff_ids.len()), ("linux", 1));
        assert_eq!(image.labels["service"], "engine-test");
        assert_eq!(image.exposed_ports, ["80/tcp"]);
        assert!(
            docker
                .images()
                .await
                .expect("list")
                .iter()
                .any(|i| i.id == image.id && i.diff_ids == image.diff_ids)
        );

        let saved: Vec<_> = docker
            .export_image(&[reference.as_str()])
            .try_collect()
            .await
            .expect("export");
        assert!(docker.remove_image(&reference).await.expect("remove"));
        assert!(
            !docker
                .remove_image(&reference)
                .await
                .expect("removing again finds nothing")
        );
        assert_eq!(docker.inspect_image(&reference).await.expect("inspect"), None);
        let archive = futures_util::stream::iter(saved.into_iter().map(Ok)).boxed();
        assert_eq!(
            docker.load_image(archive).await.expect("load"),
            std::slice::from_ref(&reference)
        );
        assert_eq!(
            docker
                .inspect_image(&reference)
                .await
                .expect("inspect")
                .map(|i| i.id),
            Some(image.id)
        );
        docker.remove_image(&reference).await.expect("remove");
    })
    .await;
}

#[tokio::test]
async fn a_pull_is_by_digest_and_with_the_password() {
    with_engine(|bench| async move {
        let registry = support::registry::serve(false).await;
        let mut request = PullRequest {
            reference: format!("{}/app@{}", registry.address, registry.digest),
            credentials: Some(Credentials {
                username: "tester".to_owned(),
                password: "wrong".to_owned(),
                server: registry.address.clone(),
            }),
            platform: None,
        };
        let error = within(60, "a refusal", bench.docker.pull(&request))
            .await
            .expect_err("the wrong password");
        assert!(!error.to_string().contains("wrong"), "{error}");
        if let Some(credentials) = &mut request.credentials {
            credentials.password = "secret".to_owned();
        }
        let image = within(60, "the pull", bench.docker.pull(&request))
            .await
            .expect("the right one");
        assert_eq!(image.id, bench.image, "the same content is the same image");
        assert!(image.digests.contains(&request.reference), "{:?}", image.digests);
        let asked = registry.asked.lock().expect("whole").clone();
        assert!(
            asked
                .iter()
                .any(|line| line.ends_with(&format!("/v2/app/manifests/{}", registry.digest))),
            "{asked:?}"
        );

        let other = request
            .reference
            .replace(&registry.digest, &format!("sha256:{}", "0".repeat(64)));
        let missing = PullRequest {
            reference: other,
            ..request.clone()
        };
        let error = within(60, "a refusal", bench.docker.pull(&missing))
            .await
            .expect_err("no such digest");
        assert!(error.is_not_found(), "{error:?}");
        assert!(
            bench
                .docker
                .remove_image(&request.reference)
                .await
                .expect("remove")
        );
    })
    .await;
}

#[tokio::test]
async fn a_pull_of_other_bytes_than_the_digest_names_is_refused() {
    with_engine(|bench| async move {
        let registry = support::registry::serve(true).await;
        let request = PullRequest {
            reference: format!("{}/app@{}", registry.address, registry.digest),
            credentials: Some(Credentials {
                username: "tester".to_owned(),
                password: "secret".to_owned(),
                server: registry.address.clone(),
            }),
            platform: None,
        };
        let error = within(120, "a refusal", bench.docker.pull(&request))
            .await
            .expect_err("tampered");
        assert!(matches!(error, EngineError::Refused { .. }), "{error:?}");
        assert_eq!(
            bench
                .docker
                .inspect_image(&request.reference)
                .await
                .expect("inspect"),
            None
        );
    })
    .await;
}

#[tokio::test]
async fn a_broken_archive_is_refused_and_a_failing_source_is_named() {
    with_engine(|bench| async move {
        let garbage =
            futures_util::stream::iter([Ok(bytes::Bytes::from_static(b"this is no archive"))]).boxed();
        let error = bench.docker.load_image(garbage).await.expect_err("no archive");
        assert!(matches!(error, EngineError::Refused { .. }), "{error:?}");
        let failing = support::archive("appliance-test-never:1")
            .take(3)
            .chain(futures_util::stream::iter([Err(std::io::Error::other(
                "the cable was pulled",
            ))]))
            .boxed();
        let error = bench
            .docker
            .load_image(failing)
            .await
            .expect_err("the source fails");
        let EngineError::Input { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(source.to_string(), "the cable was pulled");
        let left = bench
            .docker
            .inspect_image("appliance-test-never:1")
            .await
            .expect("inspect");
        assert_eq!(left, None);
    })
    .await;
}
