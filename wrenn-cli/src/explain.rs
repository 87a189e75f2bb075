//! Errors as a sentence that says what to do at a command line.

use wrenn_sdk::Error;
use wrenn_sdk::api::error::ErrorCode;

use crate::escape;

/// The server's advice to its HTTP clients, and the same for a command line.
const IN_WORDS_OF_HTTP: &[(&str, &str)] = &[
    ("GET /v1/sandboxes lists", "`wrenn sandbox list` lists"),
    ("GET /v1/snapshots lists", "`wrenn snapshot list` lists"),
    ("GET /v1/templates lists", "`wrenn template list` lists"),
    ("resume it first", "`wrenn sandbox resume` lets it go on"),
    ("or overwrite it", "or give --overwrite"),
];

/// The whole chain of an error in one line that is safe for a terminal.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error
        .chain()
        .map(|cause| match cause.downcast_ref::<Error>() {
            Some(error) => of_sdk(error),
            None => cause.to_string(),
        })
        .collect();
    escape::line(&causes.join(": "))
}

/// One error of the SDK, for a person.
pub(crate) fn of_sdk(error: &Error) -> String {
    let Error::Api {
        code,
        message,
        request_id,
        status,
        ..
    } = error
    else {
        return error.to_string();
    };
    if *code == ErrorCode::Unauthorized {
        let key_is_set = std::env::var_os("WRENN_API_KEY").is_some();
        return if key_is_set {
            "the server does not take the key in WRENN_API_KEY; is it the key of this server?"
        } else {
            "the server wants an API key; set WRENN_API_KEY, or run this as the user who \
             started `wrenn up`"
        }
        .to_owned();
    }
    let mut text = message.clone();
    for (http, here) in IN_WORDS_OF_HTTP {
        text = text.replace(http, here);
    }
    // The log of the server says why it failed.
    if let (500.., Some(id)) = (*status, request_id) {
        text.push_str(&format!(" (request {id})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn api(code: ErrorCode, message: &str) -> Error {
        Error::Api {
            code,
            message: message.to_owned(),
            request_id: Some("rq1".to_owned()),
            details: Box::default(),
            status: code.http_status(),
        }
    }

    #[test]
    fn advice_is_in_words_of_command_line() {
        let error = api(
            ErrorCode::NotFound,
            "there is no sandbox '\u{1b}[2J'; GET /v1/sandboxes lists those that there are",
        );
        assert_eq!(
            explain(&error.into()),
            "there is no sandbox '\\u{1b}[2J'; `wrenn sandbox list` lists those that there are"
        );
    }

    #[test]
    fn context_stands_before_the_cause() {
        let failed: Result<(), _> = Err(api(ErrorCode::InternalError, "the request failed"));
        let error = failed.context("cannot pause box").unwrap_err();
        assert_eq!(
            explain(&error),
            "cannot pause box: the request failed (request rq1)"
        );
    }
}
