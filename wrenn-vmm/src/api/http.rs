//! As much of HTTP/1.1 as the API needs: one request after another on a connection, with
//! bodies of a known length.

use std::fmt::Write;

/// The longest request head.
const HEAD_MAX: usize = 8 << 10;
/// The longest body, as Firecracker has it.
pub const BODY_MAX: usize = 51_200;

/// The methods that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Asks.
    Get,
    /// Sets.
    Put,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl Method {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// A whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// What to do.
    pub method: Method,
    /// With what.
    pub path: String,
    /// The body; an empty one is none.
    pub body: Option<Vec<u8>>,
}

/// The statuses that the API uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum StatusCode {
    /// Done, and here is the answer.
    Ok = 200,
    /// Done.
    NoContent = 204,
    /// Not done, and the client is why.
    BadRequest = 400,
    /// The body is too long.
    PayloadTooLarge = 413,
}

impl StatusCode {
    const fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::NoContent => "No Content",
            Self::BadRequest => "Bad Request",
            Self::PayloadTooLarge => "Payload Too Large",
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// How it went.
    pub status: StatusCode,
    /// JSON.
    pub body: Option<String>,
}

impl HttpResponse {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nServer: Wrenn API\r\nConnection: keep-alive\r\n",
            self.status as u16,
            self.status.reason()
        );
        if let Some(body) = &self.body {
            // Writing to a string cannot fail.
            write!(
                head,
                "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .ok();
        } else {
            head.push_str("\r\n");
        }
        head.into_bytes()
    }
}

/// Why bytes are no request. The connection is closed after the answer, since it is not
/// clear where the next request would start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not HTTP, or more than the API understands.
    #[error("The request is not valid HTTP: {0}.")]
    Malformed(String),
    /// Another method.
    #[error("Invalid HTTP Method.")]
    Method,
    /// Too long.
    #[error(
        "Request payload with size {0} is larger than the limit of {BODY_MAX} allowed by server."
    )]
    TooLarge(u64),
}

impl HttpError {
    /// The status that says so.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge(_) => StatusCode::PayloadTooLarge,
            _ => StatusCode::BadRequest,
        }
    }
}

/// What is in a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not a whole request yet.
    Partial {
        /// The client waits for `100 Continue` before it sends the body.
        expects_continue: bool,
    },
    /// A request, and how many bytes it took.
    Complete(HttpRequest, usize),
}

/// Parses the beginning of a buffer.
///
/// # Errors
/// If it can never become a request.
pub fn parse(buffer: &[u8]) -> Result<Parsed, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let status = request
        .parse(buffer)
        .map_err(|error| HttpError::Malformed(error.to_string()))?;
    let httparse::Status::Complete(head_length) = status else {
        if buffer.len() > HEAD_MAX {
            return Err(HttpError::Malformed("the head is too long".into()));
        }
        return Ok(Parsed::Partial {
            expects_continue: false,
        });
    };

    let mut length = 0u64;
    let mut expects_continue = false;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            length = std::str::from_utf8(header.value)
                .ok()
                .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| HttpError::Malformed("Content-Length is no number".into()))?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(HttpError::Malformed(
                "Transfer-Encoding is not supported".into(),
            ));
        } else if header.name.eq_ignore_ascii_case("expect") {
            expects_continue = header.value.eq_ignore_ascii_case(b"100-continue");
        }
    }
    let body_length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= BODY_MAX)
        .ok_or(HttpError::TooLarge(length))?;
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("PUT") => Method::Put,
        Some("PATCH") => Method::Patch,
        Some("DELETE") => Method::Delete,
        _ => return Err(HttpError::Method),
    };
    let end = head_length + body_length;
    let Some(body) = buffer.get(head_length..end) else {
        return Ok(Parsed::Partial {
            expects_continue: expects_continue && buffer.len() == head_length,
        });
    };
    let request = HttpRequest {
        method,
        path: request.path.unwrap_or("/").to_owned(),
        body: (!body.is_empty()).then(|| body.to_vec()),
    };
    Ok(Parsed::Complete(request, end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_in_pieces() {
        let bytes = b"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n\r\n";
        let end = bytes.len() - 18;
        for cut in 0..end {
            assert!(
                matches!(parse(&bytes[..cut]), Ok(Parsed::Partial { .. })),
                "{cut}"
            );
        }
        let expected = HttpRequest {
            method: Method::Put,
            path: "/actions".into(),
            body: Some(b"hello".to_vec()),
        };
        assert_eq!(parse(bytes), Ok(Parsed::Complete(expected, end)));
        let next = HttpRequest {
            method: Method::Get,
            path: "/".into(),
            body: None,
        };
        assert_eq!(parse(&bytes[end..]), Ok(Parsed::Complete(next, 18)));
    }

    #[test]
    fn client_that_waits_for_continue_is_noticed_once() {
        let head = b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        assert_eq!(
            parse(head),
            Ok(Parsed::Partial {
                expects_continue: true
            })
        );
        let more = [&head[..], b"h"].concat();
        assert_eq!(
            parse(&more),
            Ok(Parsed::Partial {
                expects_continue: false
            })
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (request, expected) in [
            ("POST / HTTP/1.1\r\n\r\n", StatusCode::BadRequest),
            ("nonsense\r\n\r\n", StatusCode::BadRequest),
            (
                "PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                StatusCode::BadRequest,
            ),
            (
                "PUT / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
                StatusCode::BadRequest,
            ),
            (
                "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                StatusCode::BadRequest,
            ),
            (
                "PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
                StatusCode::PayloadTooLarge,
            ),
        ] {
            assert_eq!(
                parse(request.as_bytes()).unwrap_err().status(),
                expected,
                "{request}"
            );
        }
        let endless = [b"GET / HTTP/1.1\r\nA: ".to_vec(), vec![b'a'; HEAD_MAX]].concat();
        assert!(parse(&endless).is_err());
    }

    #[test]
    fn answers_are_framed() {
        let with = HttpResponse {
            status: StatusCode::Ok,
            body: Some("{}".into()),
        }
        .encode();
        assert!(with.ends_with(b"Content-Length: 2\r\n\r\n{}"));
        let without = HttpResponse {
            status: StatusCode::NoContent,
            body: None,
        }
        .encode();
        assert!(without.starts_with(b"HTTP/1.1 204 No Content\r\n"));
        assert!(without.ends_with(b"\r\n\r\n"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(Parsed::Complete(_, end)) = parse(&bytes) {
                prop_assert!(end <= bytes.len());
            }
        }
    }
}
