//! The pages that the proxy itself answers with.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

/// The title and the sentence of a status.
fn words(status: StatusCode) -> (&'static str, &'static str) {
    match status.as_u16() {
        400 => ("Bad request", "The request could not be understood."),
        401 => ("Please sign in", "This page is not open to everybody."),
        404 => ("Not found", "There is nothing at this address."),
        413 => ("Too large", "What you sent is larger than this site accepts."),
        417 => (
            "Expectation failed",
            "The request asks for something this site does not offer.",
        ),
        421 => (
            "Misdirected request",
            "This connection is not meant for this site.",
        ),
        429 => ("Too many requests", "Please wait a moment and try again."),
        431 => (
            "Request too large",
            "The request's header is larger than this site accepts.",
        ),
        501 => (
            "Not implemented",
            "The request asks for something this site does not offer.",
        ),
        502 => (
            "Bad gateway",
            "The app did not answer. Please try again in a moment.",
        ),
        503 => (
            "Be right back",
            "The app is not available right now. Please try again in a moment.",
        ),
        504 => (
            "No answer in time",
            "The app took too long to answer. Please try again in a moment.",
        ),
        507 => (
            "No room",
            "There is no room for what you sent right now. Please try again later.",
        ),
        _ => ("Something went wrong", "Please try again in a moment."),
    }
}

/// Text as HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The page for `status`; `message` replaces the sentence when it is not empty.
pub(crate) fn html(status: StatusCode, message: &str) -> Bytes {
    let (title, sentence) = words(status);
    let sentence = if message.is_empty() { sentence } else { message };
    let escaped = escape(sentence);
    let code = status.as_u16();
    Bytes::from(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title>\
<style>:root{{color-scheme:light dark}}body{{margin:0;min-height:100vh;display:grid;place-items:center;\
font:1.05rem/1.5 system-ui,sans-serif}}main{{padding:2rem;max-width:32rem;text-align:center}}\
h1{{font-size:1.6rem;margin:.2rem 0}}p{{margin:.4rem 0}}.c{{opacity:.5;letter-spacing:.15em}}</style></head>\
<body><main><p class=\"c\">{code}</p><h1>{title}</h1><p>{escaped}</p></main></body></html>\n"
    ))
}

/// The page for `status` as a response.
pub(crate) fn page(status: StatusCode, message: &str) -> Response<Bytes> {
    let mut response = Response::new(html(status, message));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

/// A redirect to `location`.
pub(crate) fn redirect(status: StatusCode, location: &str) -> Response<Bytes> {
    let Ok(location) = HeaderValue::from_str(location) else {
        return page(StatusCode::BAD_REQUEST, "");
    };
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cannot_bring_markup() {
        let html = html(StatusCode::SERVICE_UNAVAILABLE, "<script>back at 5 & 6</script>");
        let text = std::str::from_utf8(&html).unwrap();
        assert!(text.contains("&lt;script&gt;back at 5 &amp; 6"), "{text}");
    }
}
