use std::collections::BTreeMap;

use http::Request;
use proptest::prelude::*;

use super::*;

fn settings(token: &str) -> Settings {
    Settings {
        access_token: AccessToken::new(token),
        env: BTreeMap::new(),
        default_user: "root".to_owned(),
        default_workdir: None,
    }
}

fn ask(method: &str, uri: &str, token: Option<&str>) -> Result<(), Refusal> {
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(token) = token {
        request = request.header(ACCESS_TOKEN_HEADER, token);
    }
    authorize(
        &request.body(()).unwrap().into_parts().0,
        &settings("secret"),
    )
}

#[test]
fn a_guest_without_token_is_open() {
    let parts = Request::builder()
        .uri("/envs")
        .body(())
        .unwrap()
        .into_parts()
        .0;
    assert_eq!(authorize(&parts, &settings("")), Ok(()));
}

#[test]
fn only_health_needs_no_token() {
    assert_eq!(ask("GET", "/health", None), Ok(()));
    assert_eq!(ask("POST", "/health", None), Err(Refusal::NoToken));
    assert_eq!(ask("POST", "/init", None), Err(Refusal::NoToken));
    assert_eq!(ask("GET", "/nowhere", None), Err(Refusal::NoToken));
    assert_eq!(ask("GET", "/files?path=a", None), Err(Refusal::NoSignature));
    assert_eq!(
        ask("POST", "/files/compose?signature=v1_x", None),
        Err(Refusal::NoToken)
    );
    assert_eq!(ask("POST", "/init", Some("secret")), Ok(()));
    assert_eq!(
        ask("POST", "/init", Some("secre")),
        Err(Refusal::WrongToken)
    );
}

/// The expected value was computed with the reference client's own function.
#[test]
fn signs_as_the_reference_client_does() {
    let token = AccessToken::new("secret").unwrap();
    assert_eq!(
        sign("/home/user/a b", Operation::Read, "user", &token, None),
        "v1_GBJwF64PEcfRmgyeRZXoGLi5wQhVlg/8mFyKqRsVxrA"
    );
    assert_eq!(
        sign("x", Operation::Write, "", &token, Some(1_700_000_000)),
        "v1_8vAt0S4klSZRR+cplBQNfidK9yA0Cby+D7qR8Bk/DTo"
    );
}

#[test]
fn a_signature_ends_at_its_expiration() {
    let token = AccessToken::new("secret").unwrap();
    let signature = sign("/a", Operation::Read, "", &token, Some(100));
    let query = Query::parse(&format!(
        "path=%2Fa&signature={}&signature_expiration=100",
        signature.replace('+', "%2B")
    ));
    assert_eq!(
        check_signature(&query, Operation::Read, &token, 100),
        Ok(())
    );
    assert_eq!(
        check_signature(&query, Operation::Read, &token, 101),
        Err(Refusal::Expired)
    );
    assert_eq!(
        check_signature(&query, Operation::Write, &token, 100),
        Err(Refusal::WrongSignature)
    );
}

#[test]
fn the_token_is_not_printed() {
    assert!(!format!("{:?}", settings("canary")).contains("canary"));
}

#[test]
fn reads_basic_users() {
    assert_eq!(basic_user(b"Basic dXNlcjo="), Some("user".to_owned()));
    assert_eq!(basic_user(b"basic Og=="), Some(String::new()));
    assert_eq!(basic_user(b"Bearer dXNlcjo="), None);
    assert_eq!(basic_user(b"Basic !"), None);
    assert_eq!(basic_user(b"B"), None);
}

proptest! {
    /// Nothing but the exact signature opens a path, whatever the query looks like.
    #[test]
    fn no_query_opens_a_path_by_chance(text in "\\PC{0,200}") {
        let token = AccessToken::new("secret").unwrap();
        prop_assert!(check_signature(&Query::parse(&text), Operation::Read, &token, 0).is_err());
    }

    #[test]
    fn changing_any_part_breaks_the_signature(
        path in "[a-z/]{1,20}", other in "[a-z/]{1,20}", user in "[a-z]{0,8}",
    ) {
        prop_assume!(path != other);
        let token = AccessToken::new("secret").unwrap();
        let signature = sign(&path, Operation::Read, &user, &token, None);
        prop_assert_ne!(&signature, &sign(&other, Operation::Read, &user, &token, None));
        prop_assert_ne!(&signature, &sign(&path, Operation::Write, &user, &token, None));
    }

    #[test]
    fn any_authorization_header_is_survived(value in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = basic_user(&value);
    }
}
