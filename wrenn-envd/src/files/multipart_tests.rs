use proptest::prelude::*;

use super::*;

const TYPE: &str = "multipart/form-data; boundary=b0undary";

/// Name, file name and contents of each part.
type Parts = Vec<(Option<String>, Option<String>, Vec<u8>)>;

fn parse(pieces: &[&[u8]]) -> Result<Parts, MultipartError> {
    let mut parser = Parser::new(TYPE)?;
    let mut parts = Parts::new();
    for piece in pieces {
        parser.feed(piece)?;
        while let Some(event) = parser.event() {
            match event {
                Event::Part(head) => parts.push((head.name, head.filename, Vec::new())),
                Event::Data(data) => parts.last_mut().unwrap().2.extend_from_slice(&data),
                Event::PartEnd => {}
            }
        }
    }
    parser.finish().map(|()| parts)
}

fn form(contents: &[&[u8]]) -> Vec<u8> {
    let mut form = Vec::new();
    for (n, contents) in contents.iter().enumerate() {
        form.extend_from_slice(
            format!(
                "--b0undary\r\nContent-Disposition: form-data; name=\"file\"; filename=\"/f{n}\"\r\n\
                 Content-Type: text/plain\r\n\r\n"
            )
            .as_bytes(),
        );
        form.extend_from_slice(contents);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(b"--b0undary--\r\n");
    form
}

#[test]
fn reads_parts_with_awkward_contents() {
    let contents: [&[u8]; 4] = [b"", b"\r\n", b"\r\n--b0undar", b"--b0undary--"];
    let form = form(&contents);
    let parts = parse(&[&form]).unwrap();
    assert_eq!(parts.len(), 4);
    for (n, (name, filename, data)) in parts.iter().enumerate() {
        assert_eq!(name.as_deref(), Some("file"));
        assert_eq!(filename.as_deref(), Some(format!("/f{n}").as_str()));
        assert_eq!(data, contents[n]);
    }
}

#[test]
fn skips_preamble_and_epilogue() {
    let parts = parse(&[
        b"nonsense\r\n--b0undary \t\r\n\r\nno headers\r\n--b0undary-- more\r\n--b0undary nonsense",
    ]);
    assert_eq!(parts, Ok(vec![(None, None, b"no headers".to_vec())]));
}

#[test]
fn says_what_is_wrong() {
    assert_eq!(
        Parser::new("multipart/form-data").unwrap_err(),
        MultipartError::Boundary
    );
    let long = format!("multipart/form-data; boundary={}", "x".repeat(71));
    assert_eq!(Parser::new(&long).unwrap_err(), MultipartError::Boundary);
    assert_eq!(
        parse(&[b"--b0undary\r\n\r\ncut off"]),
        Err(MultipartError::Truncated)
    );
    assert_eq!(
        parse(&[b"--b0undaryXY"]),
        Err(MultipartError::AfterBoundary)
    );
    let header = vec![b'h'; MAX_HEADERS + 10];
    assert_eq!(
        parse(&[b"--b0undary\r\n", &header]),
        Err(MultipartError::HeadersTooLong)
    );
}

#[test]
fn reads_names_as_clients_write_them() {
    let head = |disposition: &str| {
        PartHead::parse(&format!("\r\nX: y\r\ncontent-disposition: {disposition}"))
    };
    let file = |name: &str| PartHead {
        name: Some("file".to_owned()),
        filename: Some(name.to_owned()),
    };
    assert_eq!(
        head(r#"form-data; name="file"; filename="/a b;c""#),
        file("/a b;c")
    );
    assert_eq!(
        head(r#"form-data; filename="a\"b\\c"; name=file"#),
        file(r#"a"b\c"#)
    );
    assert_eq!(
        head(r#"form-data; name="file"; filename="a%22b%41""#),
        file(r#"a"b%41"#)
    );
    assert_eq!(
        head("form-data; name=file; filename=x; filename*=UTF-8''%e2%82%ac%20y"),
        file("€ y")
    );
    assert_eq!(head(r#"form-data; name="file"#), PartHead::default());
    assert_eq!(
        parameter(r#"multipart/x; boundary="a b""#, "boundary").as_deref(),
        Some("a b")
    );
}

proptest! {
    /// However the network cuts a form up, the same comes out.
    #[test]
    fn cuts_make_no_difference(
        contents in prop::collection::vec("[\r\n\\-b0undary]{0,40}", 0..5),
        cuts in prop::collection::vec(0usize..600, 0..12),
    ) {
        // A body must not hold its own boundary.
        prop_assume!(contents.iter().all(|body| !body.contains("--b0undary")));
        let contents: Vec<&[u8]> = contents.iter().map(|body| body.as_bytes()).collect();
        let form = form(&contents);
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < form.len()).collect();
        cuts.extend([0, form.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &form[cut[0]..cut[1]]).collect();
        let parts = parse(&pieces).unwrap();
        let bodies: Vec<&[u8]> = parts.iter().map(|(_, _, body)| body.as_slice()).collect();
        prop_assert_eq!(bodies, contents);
    }

    #[test]
    fn survives_anything(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        drop(parse(&pieces));
    }

    #[test]
    fn holds_back_no_more_than_a_boundary(body in prop::collection::vec(any::<u8>(), 1000..2000)) {
        prop_assume!(memmem::find(&body, b"--b0undary").is_none());
        let mut parser = Parser::new(TYPE).unwrap();
        parser.feed(b"--b0undary\r\n\r\n").unwrap();
        parser.feed(&body).unwrap();
        prop_assert!(parser.buffer.len() < b"\r\n--b0undary".len());
    }

    #[test]
    fn header_parameters_are_survived(text in "\\PC{0,100}") {
        let _ = parameter(&text, "boundary");
        let _ = PartHead::parse(&text);
    }
}
