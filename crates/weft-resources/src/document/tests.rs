use super::*;

fn lines(text: &str) -> Vec<String> {
    let show = |d: Result<Document, Violations>| match d {
        Ok(doc) => format!("{} at line {}", doc.key(), doc.line),
        Err(violations) => violations.to_string(),
    };
    parse("f.yaml", text).into_iter().map(show).collect()
}

fn check(text: &str, want: &[&str]) {
    assert_eq!(lines(text), want, "{text}");
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n";

#[test]
fn a_stream_holds_several_documents() {
    check("", &[]);
    check("# nothing\n---\n---\n# nothing either\n...\n", &[]);
    check(SERVICE, &["Service/default/web at line 1"]);
    check(
        &format!("%YAML 1.2\n---\n{SERVICE}--- # next\n{SERVICE}---\n"),
        &["Service/default/web at line 3", "Service/default/web at line 7"],
    );
    check(&format!("\u{feff}{}", SERVICE.replace('\n', "\r\n")), &["Service/default/web at line 1"]);
    // a marker needs its line: these are values
    check(&format!("{SERVICE}spec: {{ports: []}}\n----\n"), &["f.yaml:5:1: malformed YAML: simple key expected ':'"]);
}

#[test]
fn a_malformed_document_does_not_hide_the_others() {
    check(
        &format!("{SERVICE}---\na: [1\nb: 2\n---\n{SERVICE}"),
        &[
            "Service/default/web at line 1",
            "f.yaml:6:2: malformed YAML: illegal placement of ':' indicator",
            "Service/default/web at line 8",
        ],
    );
}

#[test]
fn malformed_yaml_is_told_with_its_place() {
    check("a: b: c", &["f.yaml:1:5: malformed YAML: mapping values are not allowed in this context"]);
    check("a: 1\na: 2\n", &["f.yaml:2:1: malformed YAML: duplicate mapping key: a"]);
    check("a: 'x\n", &["f.yaml:1:4: malformed YAML: unclosed quote"]);
    check("just text", &["f.yaml:1:1: must be a mapping, is the text `just text`"]);
    check("[1]", &["f.yaml:1:1: must be a mapping, is a list"]);
}

#[test]
fn kinds_and_versions_are_checked() {
    let check_header = |header: &str, want: &str| check(&format!("{header}\nmetadata: {{name: a}}\n"), &[want]);
    check_header("apiVersion: v1\nkind: Servce", "f.yaml:2:7: kind: unknown kind `Servce`; did you mean `Service`?");
    check_header(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HttpRoute",
        "f.yaml:2:7: kind: unknown kind `HttpRoute`; did you mean `HTTPRoute`?",
    );
    check_header(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService",
        "f.yaml:2:7: kind: kind `VirtualService` is not supported yet",
    );
    check_header(
        "apiVersion: v2\nkind: Service",
        "f.yaml:1:13: apiVersion: unknown version `v2` of Service; did you mean `v1`?",
    );
    check_header("kind: Service", "f.yaml:1:1: apiVersion: is missing; Service is `v1`");
    check_header("apiVersion: v1", "f.yaml:1:1: kind: is missing; say what this is, such as `kind: HTTPRoute`");
}

#[test]
fn metadata_is_checked() {
    let check_meta = |meta: &str, want: &[&str]| {
        check(&format!("apiVersion: v1\nkind: Service\n{meta}\n"), &[&want.join("\n")]);
    };
    check_meta("", &["f.yaml:1:1: metadata: is missing; a document needs at least metadata.name"]);
    check_meta("metadata: {}", &["f.yaml:3:11: metadata.name: is missing"]);
    check_meta(
        "metadata: {name: 5, namespace: a/b, labels: {v: 1.10}, creationTimestamp: now}",
        &[
            "f.yaml:3:18: metadata.name: must be text, is the number 5; put it in quotes",
            "f.yaml:3:32: metadata.namespace: `a/b` is not a name: it contains `/`",
            "f.yaml:3:49: metadata.labels[v]: must be text, is the number 1.1; put it in quotes",
            "f.yaml:3:75: metadata.creationTimestamp: `now` is not a time such as `2026-11-25T10:06:17Z`",
        ],
    );
    check_meta(
        "metadata: {generateName: a-}",
        &["f.yaml:3:26: metadata.generateName: is not supported; give the resource a name"],
    );
}

#[test]
fn what_is_wrong_with_the_spec_is_told_with_what_is_wrong_with_the_metadata() {
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {nam: web}\nspec: {prots: []}\n",
        &["f.yaml:3:11: metadata.name: is missing\n\
           f.yaml:3:12: metadata.nam: unknown field; did you mean `name`?\n\
           f.yaml:4:8: spec.prots: unknown field; did you mean `ports`?"],
    );
}

#[test]
fn a_list_of_kubernetes_is_its_items() {
    check(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a, namespace: n}}\n- {kind: Service}\n",
        &[
            "Service/n/a at line 4",
            "f.yaml:5:3: apiVersion: is missing; Service is `v1`\n\
             f.yaml:5:3: metadata: is missing; a document needs at least metadata.name",
        ],
    );
}

#[test]
fn json_is_yaml() {
    check(
        "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"a\\u002fb\"}}",
        &["f.yaml:1:56: metadata.name: `a/b` is not a name: it contains `/`"],
    );
}

#[test]
fn words_that_older_yaml_took_for_booleans_stay_text() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {country: no, on: yes, y: n}}\n";
    let doc = parse("", text).remove(0).unwrap();
    assert_eq!(doc.metadata.labels.get("country"), Some("no"));
    assert_eq!(doc.metadata.labels.get("on"), Some("yes"));
}

#[test]
fn without_a_file_the_line_is_told_and_from_json_neither() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {}\n";
    let violations = parse("", text).remove(0).unwrap_err();
    assert_eq!(violations.to_string(), "line 3, column 11: metadata.name: is missing");
    let violations = from_json(&serde_json::json!({"kind": "Service", "apiVersion": "v1"})).unwrap_err();
    assert_eq!(violations.to_string(), "metadata: is missing; a document needs at least metadata.name");
}

#[test]
fn nothing_that_is_typed_can_panic() {
    for text in [
        "\0",
        "---",
        "--- |\n---",
        "&a [*a]",
        "? :",
        "{",
        "- - - -",
        "a: !!binary x",
        "<<: 1",
        "\u{85}",
        "a: 1e999",
        "%",
    ] {
        parse("f", text);
    }
    let deep = "[".repeat(5000);
    parse("f", &deep);
}
