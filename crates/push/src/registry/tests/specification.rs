//! The distribution specification 1.1 as a table: end points `end-1` to `end-13` of its own list, and its error codes.
//!
//! Each row is one request; what an answer's `Location` said is `{at}` in later rows.

use super::*;

/// What an answer must have besides its status.
enum Has {
    /// Nothing in particular.
    Nothing,
    /// An error of this code of the specification.
    Code(&'static str),
    /// A header with this value; `{…}` as in paths.
    Header(&'static str, &'static str),
    /// No such header.
    NoHeader(&'static str),
    /// This body, byte for byte.
    Body(&'static str),
    /// This value at a JSON pointer of the body.
    Json(&'static str, &'static str),
}
use Has::{Body, Code, Header, Json, NoHeader, Nothing};

/// End point, method, path, headers, body, status, what else.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
    u16,
    Has,
);

const OCI: (&str, &str) = ("content-type", media_type::OCI_MANIFEST);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("end-1", "GET", "/v2/", &[], "", 200, Header("docker-distribution-api-version", "registry/2.0")),

    // Pushing a blob monolithically: POST then PUT, and in a single POST.
    ("end-4a", "POST", "/v2/app/blobs/uploads/", &[], "", 202, Header("range", "0-0")),
    ("end-6", "PUT", "{at}?digest={layer}", &[("content-type", "application/octet-stream")], "a layer", 201, Header("location", "/v2/app/blobs/{layer}")),
    ("end-4b", "POST", "/v2/app/blobs/uploads/?digest={config}", &[], "{}", 201, Header("location", "/v2/app/blobs/{config}")),
    ("end-4b", "POST", "/v2/app/blobs/uploads/?digest={config}", &[], "{ }", 400, Code("DIGEST_INVALID")),
    ("end-4b", "POST", "/v2/app/blobs/uploads/?digest=md5:12", &[], "{ }", 400, Code("DIGEST_INVALID")),
    ("end-4a", "POST", "/v2/App/blobs/uploads/", &[], "", 400, Code("NAME_INVALID")),

    // In chunks: in order or refused with 416 and what is there; GET tells how far it is.
    ("end-4a", "POST", "/v2/app/blobs/uploads/", &[("content-length", "0")], "", 202, NoHeader("docker-content-digest")),
    ("end-5", "PATCH", "{at}", &[("content-range", "0-3")], "0123", 202, Header("range", "0-3")),
    ("end-5", "PATCH", "{at}", &[("content-range", "0-3")], "0123", 416, Code("BLOB_UPLOAD_INVALID")),
    ("end-5", "PATCH", "{at}", &[("content-range", "6-7")], "67", 416, Header("range", "0-3")),
    ("end-5", "PATCH", "{at}", &[("content-range", "four")], "67", 416, Nothing),
    ("end-13", "GET", "{at}", &[], "", 204, Header("range", "0-3")),
    ("end-5", "PATCH", "{at}", &[], "45", 202, Header("range", "0-5")),
    ("end-6", "PUT", "{at}", &[], "", 400, Code("DIGEST_INVALID")),
    ("end-6", "PUT", "{at}?digest={chunked}", &[("content-range", "6-9")], "6789", 201, Header("location", "/v2/app/blobs/{chunked}")),
    ("end-13", "GET", "{at}", &[], "", 404, Code("BLOB_UPLOAD_UNKNOWN")),
    ("end-13", "GET", "/v2/app/blobs/uploads/none", &[], "", 404, Code("BLOB_UPLOAD_UNKNOWN")),

    // Mounting what another repository has; what none has becomes an upload.
    ("end-11", "POST", "/v2/other/blobs/uploads/?mount={layer}&from=app", &[], "", 201, Header("location", "/v2/other/blobs/{layer}")),
    ("end-11", "POST", "/v2/other/blobs/uploads/?mount={absent}&from=app", &[], "", 202, NoHeader("docker-content-digest")),

    // Pulling blobs.
    ("end-2", "GET", "/v2/app/blobs/{chunked}", &[], "", 200, Body("0123456789")),
    ("end-2", "HEAD", "/v2/app/blobs/{chunked}", &[], "", 200, Header("content-length", "10")),
    ("end-2", "HEAD", "/v2/app/blobs/{chunked}", &[], "", 200, Header("docker-content-digest", "{chunked}")),
    ("end-2", "GET", "/v2/app/blobs/{chunked}", &[("range", "bytes=2-4")], "", 206, Header("content-range", "bytes 2-4/10")),
    ("end-2", "GET", "/v2/app/blobs/{absent}", &[], "", 404, Code("BLOB_UNKNOWN")),
    ("end-2", "HEAD", "/v2/app/blobs/{absent}", &[], "", 404, Body("")),

    // Manifests: with all they name, under a tag or their digest, and byte for byte.
    ("end-7", "PUT", "/v2/app/manifests/v1", &[OCI], "{image}", 201, Header("docker-content-digest", "{image-digest}")),
    ("end-7", "PUT", "/v2/app/manifests/{image-digest}", &[OCI], "{image}", 201, Header("location", "/v2/app/manifests/{image-digest}")),
    ("end-7", "PUT", "/v2/app/manifests/{absent}", &[OCI], "{image}", 400, Code("DIGEST_INVALID")),
    ("end-7", "PUT", "/v2/app/manifests/v2", &[OCI], "{hollow}", 404, Code("MANIFEST_BLOB_UNKNOWN")),
    ("end-7", "PUT", "/v2/app/manifests/v2", &[OCI], "no json", 400, Code("MANIFEST_INVALID")),
    ("end-7", "PUT", "/v2/app/manifests/-bad", &[OCI], "{image}", 400, Code("MANIFEST_INVALID")),
    ("end-3", "GET", "/v2/app/manifests/v1", &[("accept", media_type::OCI_MANIFEST)], "", 200, Body("{image}")),
    ("end-3", "GET", "/v2/app/manifests/{image-digest}", &[], "", 200, Header("content-type", media_type::OCI_MANIFEST)),
    ("end-3", "HEAD", "/v2/app/manifests/v1", &[], "", 200, Header("docker-content-digest", "{image-digest}")),
    ("end-3", "GET", "/v2/app/manifests/none", &[], "", 404, Code("MANIFEST_UNKNOWN")),
    ("end-3", "HEAD", "/v2/app/manifests/none", &[], "", 404, Body("")),

    // What is there: tags in order and in pages, and what refers to an image.
    ("end-7", "PUT", "/v2/app/manifests/a", &[OCI], "{image}", 201, Nothing),
    ("end-8a", "GET", "/v2/app/tags/list", &[], "", 200, Json("/tags", r#"["a","v1"]"#)),
    ("end-8b", "GET", "/v2/app/tags/list?n=1", &[], "", 200, Json("/tags", r#"["a"]"#)),
    ("end-8b", "GET", "/v2/app/tags/list?n=1", &[], "", 200, Header("link", "</v2/app/tags/list?n=1&last=a>; rel=\"next\"")),
    ("end-8b", "GET", "/v2/app/tags/list?n=1&last=a", &[], "", 200, Json("/tags", r#"["v1"]"#)),
    ("end-8b", "GET", "/v2/app/tags/list?n=1&last=v1", &[], "", 200, NoHeader("link")),
    ("end-8a", "GET", "/v2/nobody/tags/list", &[], "", 404, Code("NAME_UNKNOWN")),
    ("end-7", "PUT", "/v2/app/manifests/signature", &[OCI], "{signature}", 201, Header("oci-subject", "{image-digest}")),
    ("end-12a", "GET", "/v2/app/referrers/{image-digest}", &[], "", 200, Header("content-type", media_type::OCI_INDEX)),
    ("end-12a", "GET", "/v2/app/referrers/{image-digest}", &[], "", 200, Json("/manifests/0/artifactType", r#""application/example""#)),
    ("end-12a", "GET", "/v2/app/referrers/{absent}", &[], "", 200, Json("/manifests", "[]")),
    ("end-12b", "GET", "/v2/app/referrers/{image-digest}?artifactType=application/example", &[], "", 200, Header("oci-filters-applied", "artifactType")),
    ("end-12b", "GET", "/v2/app/referrers/{image-digest}?artifactType=other", &[], "", 200, Json("/manifests", "[]")),

    // Taking away: tags and manifests; blobs are all repositories' and left to garbage collection.
    ("end-9", "DELETE", "/v2/app/manifests/a", &[], "", 202, Nothing),
    ("end-9", "DELETE", "/v2/app/manifests/a", &[], "", 404, Code("MANIFEST_UNKNOWN")),
    ("end-9", "DELETE", "/v2/app/manifests/{image-digest}", &[], "", 202, Nothing),
    ("end-3", "GET", "/v2/app/manifests/v1", &[], "", 404, Code("MANIFEST_UNKNOWN")),
    ("end-10", "DELETE", "/v2/app/blobs/{layer}", &[], "", 405, Code("UNSUPPORTED")),
    ("end-1", "GET", "/v2/_catalog", &[], "", 404, Nothing),
];

/// What stands for a digest or a document in a row.
fn words() -> Vec<(&'static str, String)> {
    let config = Digest::of(b"{}");
    let image = manifest(
        &config,
        2,
        serde_json::json!([{"mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": Digest::of(b"a layer"), "size": 7}]),
    );
    let hollow = manifest(&Digest::of(b"absent"), 6, serde_json::json!([]));
    let mut signature = manifest(&config, 2, serde_json::json!([]));
    let text = image.to_string();
    signature["artifactType"] = "application/example".into();
    signature["subject"] = serde_json::json!({"mediaType": media_type::OCI_MANIFEST,
        "digest": Digest::of(text.as_bytes()), "size": text.len()});
    vec![
        ("{config}", config.to_string()),
        ("{layer}", Digest::of(b"a layer").to_string()),
        ("{chunked}", Digest::of(b"0123456789").to_string()),
        ("{absent}", Digest::of(b"absent").to_string()),
        ("{image-digest}", Digest::of(text.as_bytes()).to_string()),
        ("{image}", text),
        ("{hollow}", hollow.to_string()),
        ("{signature}", signature.to_string()),
    ]
}

#[tokio::test]
async fn every_end_point_answers_as_the_specification_says() {
    let server = serve(everything()).await;
    let mut words = words();
    words.push(("{at}", String::new()));
    let mut wrong = Vec::new();
    for (number, (end, method, path, headers, body, status, has)) in ROWS.iter().enumerate() {
        let filled = |text: &str| {
            words
                .iter()
                .fold(text.to_owned(), |text, (word, value)| text.replace(word, value))
        };
        // A path with an upload's query in it keeps one question mark.
        let asked = filled(path);
        let reply = server.ask(method, &asked, headers, filled(body).as_bytes()).await;
        let header = |name: &str| {
            reply
                .headers
                .get(name)
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let json = || serde_json::from_slice::<serde_json::Value>(&reply.body).unwrap_or_default();
        let fits = match has {
            Nothing => true,
            Code(code) => json()["errors"][0]["code"] == **code,
            Header(name, value) => header(name).as_deref() == Some(filled(value).as_str()),
            NoHeader(name) => header(name).is_none(),
            Body(wanted) => reply.body == filled(wanted).as_bytes(),
            Json(pointer, wanted) => json().pointer(pointer) == serde_json::from_str(wanted).ok().as_ref(),
        };
        if reply.status != *status || !fits {
            let shown = String::from_utf8_lossy(&reply.body).into_owned();
            wrong.push(format!(
                "row {number} ({end}): {method} {asked}: {} {:?} {shown}",
                reply.status, reply.headers
            ));
        }
        let upload = header("location").filter(|at| reply.status == 202 && at.contains("/uploads/"));
        if let (Some(at), Some(last)) = (upload, words.last_mut()) {
            last.1 = at;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
