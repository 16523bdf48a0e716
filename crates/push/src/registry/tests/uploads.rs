//! Uploads that are cut off, contested or too large.

use tokio::io::AsyncWriteExt as _;

use super::*;

#[tokio::test]
async fn a_cut_upload_keeps_what_arrived_and_continues() {
    let server = serve(everything()).await;
    let content = vec![7_u8; 3 << 20];
    let digest = Digest::of(&content);
    let begin = format!("/v2/app/blobs/uploads/?expect={digest}&size={}", content.len());
    let begun = server.ask("POST", &begin, &[], b"").await;
    assert_eq!(begun.header("appliance-upload-offset"), "0");
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let head = format!(
        "PUT {}?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        begun.header("location"),
        content.len()
    );
    stream.write_all(head.as_bytes()).await.expect("head");
    stream.write_all(&content[..1_000_000]).await.expect("a part");
    drop(stream);

    // The server notices the end on its own time; the store tells when it has taken everything in.
    let arrived = async {
        loop {
            let again = server.ask("POST", &begin, &[], b"").await;
            if again.header("appliance-upload-offset") == "1000000" {
                return again;
            }
            tokio::task::yield_now().await;
        }
    };
    let again = tokio::time::timeout(std::time::Duration::from_secs(20), arrived)
        .await
        .expect("arrives");
    assert_eq!(
        again.header("location"),
        begun.header("location"),
        "the same upload"
    );
    let range = format!("1000000-{}", content.len() - 1);
    let path = format!("{}?digest={digest}", again.header("location"));
    let done = server
        .ask("PUT", &path, &[("content-range", &range)], &content[1_000_000..])
        .await;
    assert_eq!(done.status, 201);
    assert_eq!(
        server.ask("POST", &begin, &[], b"").await.status,
        201,
        "there already"
    );
    assert_eq!(
        server.store.blob_size(&digest).expect("asks"),
        Some(content.len() as u64)
    );
}

#[tokio::test]
async fn two_senders_of_one_blob_do_not_meet_but_a_deserted_upload_is_taken_over() {
    let server = serve(everything()).await;
    let content = vec![9_u8; 2 << 20];
    let digest = Digest::of(&content);
    let begin = format!("/v2/app/blobs/uploads/?expect={digest}&size={}", content.len());
    let (one, two) = (
        [("authorization", "Bearer one")],
        [("authorization", "Bearer two")],
    );
    let first = server
        .ask("POST", &begin, &one, b"")
        .await
        .header("location")
        .to_owned();
    // The first sender keeps sending until the second one, who asks meanwhile, has its answer.
    let mut sent = 0;
    let asking = server.ask("POST", &begin, &two, b"");
    tokio::pin!(asking);
    let second = loop {
        let piece = &content[sent..][..1024];
        let range = format!("{sent}-{}", sent + piece.len() - 1);
        let headers = [one[0], ("content-range", range.as_str())];
        let sending = async {
            let reply = server.ask("PATCH", &first, &headers, piece).await;
            assert_eq!(reply.status, 202);
        };
        tokio::select! {
            biased;
            second = &mut asking => break second,
            () = sending => sent += piece.len(),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(
        (second.status, second.header("appliance-upload-offset")),
        (202, "0")
    );
    let second = second.header("location").to_owned();
    assert_ne!(second, first);
    assert_eq!(server.ask("DELETE", &second, &two, b"").await.status, 204);
    let again = server.ask("POST", &begin, &one, b"").await;
    assert_eq!(again.header("location"), first, "its own is found again");
    // Now the first one stands still.
    let taken = server.ask("POST", &begin, &two, b"").await;
    assert_eq!(taken.header("location"), first);
    let offset: usize = taken.header("appliance-upload-offset").parse().expect("a number");
    let path = format!("{first}?digest={digest}");
    let range = format!("{offset}-{}", content.len() - 1);
    let done = server
        .ask(
            "PUT",
            &path,
            &[two[0], ("content-range", &range)],
            &content[offset..],
        )
        .await;
    assert_eq!(done.status, 201);
}

#[tokio::test]
async fn too_little_room_is_said_before_bytes_move() {
    let server = serve_with(
        everything(),
        Limits {
            reserve: u64::MAX,
            ..Limits::default()
        },
    )
    .await;
    let digest = Digest::of(b"x");
    let begin = format!("/v2/app/blobs/uploads/?expect={digest}&size=1");
    let refused = server.ask("POST", &begin, &[], b"").await;
    assert_eq!((refused.status, refused.code().as_str()), (507, "SIZE_INVALID"));
    assert!(String::from_utf8_lossy(&refused.body).contains("disk room"));
    let whole = server
        .ask(
            "POST",
            &format!("/v2/app/blobs/uploads/?digest={digest}"),
            &[],
            b"x",
        )
        .await;
    assert_eq!(whole.status, 507);
    assert_eq!(server.store.usage().expect("usage"), Default::default());
}

#[tokio::test]
async fn more_bytes_than_announced_leave_no_unfinished_upload() {
    let server = serve(everything()).await;
    let content = vec![7_u8; 100];
    let digest = Digest::of(&content);
    let begin = format!("/v2/app/blobs/uploads/?expect={digest}&size={}", content.len());
    let begun = server.ask("POST", &begin, &[], b"").await;
    let path = format!("{}?digest={digest}", begun.header("location"));
    let refused = server.ask("PUT", &path, &[], &[7_u8; 101]).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "SIZE_INVALID"));
    assert_eq!(server.store.usage().expect("usage").uploads, 0);
    // The honest sender is not in its way.
    let begun = server.ask("POST", &begin, &[], b"").await;
    let path = format!("{}?digest={digest}", begun.header("location"));
    assert_eq!(server.ask("PUT", &path, &[], &content).await.status, 201);
}
