//! What other clients of the protocol rely on: every name, number and type of
//! `wire.txt` must be in our .proto files. More may be there.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use protox::prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use protox::prost_reflect::prost_types::{DescriptorProto, FileDescriptorProto};

/// One line for every field, enum value and method.
fn facts(file: &FileDescriptorProto) -> Vec<String> {
    let package = file.package();
    let mut facts = Vec::new();
    for message in &file.message_type {
        message_facts(
            &format!("{package}.{}", message.name()),
            message,
            &mut facts,
        );
    }
    for kind in &file.enum_type {
        for value in &kind.value {
            let name = format!("{package}.{}", kind.name());
            facts.push(format!("enum {name} {} = {}", value.name(), value.number()));
        }
    }
    for service in &file.service {
        for method in &service.method {
            let stream = |yes: bool| if yes { "stream " } else { "" };
            facts.push(format!(
                "rpc {package}.{}/{} {}{} {}{}",
                service.name(),
                method.name(),
                stream(method.client_streaming()),
                method.input_type(),
                stream(method.server_streaming()),
                method.output_type(),
            ));
        }
    }
    facts
}

fn message_facts(name: &str, message: &DescriptorProto, facts: &mut Vec<String>) {
    facts.push(format!("message {name}"));
    for field in &message.field {
        let kind = match field.r#type() {
            Type::Message | Type::Enum => field.type_name().to_owned(),
            scalar => scalar
                .as_str_name()
                .trim_start_matches("TYPE_")
                .to_lowercase(),
        };
        let repeated = if field.label() == Label::Repeated {
            "repeated "
        } else {
            ""
        };
        let oneof = match field.oneof_index {
            Some(_) if field.proto3_optional() => "optional ".to_owned(),
            Some(index) => format!("oneof {} ", message.oneof_decl[index as usize].name()),
            None => String::new(),
        };
        facts.push(format!(
            "field {name} {oneof}{repeated}{kind} {} = {}",
            field.name(),
            field.number()
        ));
    }
    for nested in &message.nested_type {
        message_facts(&format!("{name}.{}", nested.name()), nested, facts);
    }
}

#[test]
fn other_clients_find_all_that_they_know() {
    let set = protox::compile(
        ["envd/process.proto", "envd/filesystem.proto"],
        [env!("CARGO_MANIFEST_DIR")],
    )
    .unwrap();
    let ours: Vec<String> = set.file.iter().flat_map(facts).collect();
    let missing: Vec<&str> = include_str!("wire.txt")
        .lines()
        .filter(|fact| !ours.iter().any(|our| our == fact))
        .collect();
    assert!(
        missing.is_empty(),
        "missing or different:\n{}",
        missing.join("\n")
    );
}
