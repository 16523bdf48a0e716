//! SNAPSHOT.md says what the types say.

use serde_json::{Value, json};

use super::*;

const PAGE: &str = include_str!("../../SNAPSHOT.md");

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap()
}

fn example() -> Value {
    let text = PAGE.split("```json\n").nth(1).unwrap();
    serde_json::from_str(text.split("```").next().unwrap()).unwrap()
}

/// The table below a heading: key and default.
fn table(heading: &str) -> Vec<(String, String)> {
    let section = PAGE.split_once(&format!("# {heading}\n")).unwrap().1;
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split(" | ").map(str::trim);
        let key = cells.next().unwrap().trim_matches('`').to_owned();
        (key, cells.nth(1).unwrap().to_owned())
    })
    .collect()
}

#[test]
fn the_example_of_the_page_is_served_and_names_every_key() {
    let example = example();
    let snapshot: Snapshot = serde_json::from_value(example.clone()).unwrap();
    assert_eq!(snapshot.problems(), Vec::<String>::new());
    assert_eq!(
        serde_json::to_value(&snapshot).unwrap()["services"][0],
        example["services"][0],
        "nothing is lost or left out"
    );
    assert_eq!(
        serde_json::to_value(&snapshot.settings).unwrap(),
        example["settings"]
    );
}

#[test]
fn the_tables_of_the_page_name_every_key_with_its_default() {
    let example = example();
    let service = &example["services"][0];
    let minimal = json!({"name": "a", "upstreams": ["127.0.0.1:1"]});
    let minimal: Service = serde_json::from_value(minimal).unwrap();
    let canary: Canary = serde_json::from_value(json!({"upstreams": []})).unwrap();
    let redirect: Redirect = serde_json::from_value(json!({"from": "/", "to": "/"})).unwrap();
    let auth: Auth = serde_json::from_value(json!({"users": {}})).unwrap();
    for (heading, shown, defaults) in [
        ("Settings", &example["settings"], value(&Settings::default())),
        ("Service", service, value(&minimal)),
        ("Canary", &service["canary"], value(&canary)),
        (
            "Health check",
            &service["health_check"],
            value(&HealthCheck::default()),
        ),
        ("Limits", &service["limits"], value(&Limits::default())),
        ("Buffering", &service["buffering"], value(&Buffering::default())),
        ("Log", &service["log"], value(&Log::default())),
        ("Redirect", &service["redirects"][0], value(&redirect)),
        ("Auth", &service["auth"], value(&auth)),
        (
            "Compression",
            &service["compression"],
            value(&Compression::default()),
        ),
    ] {
        let rows = table(heading);
        let mut named: Vec<&str> = rows.iter().map(|(key, _)| key.as_str()).collect();
        let mut keys: Vec<&str> = shown.as_object().unwrap().keys().map(String::as_str).collect();
        named.sort_unstable();
        keys.sort_unstable();
        assert_eq!(named, keys, "{heading}");
        for (key, default) in &rows {
            match default.as_str() {
                "required" | "see below" => {}
                "absent" => assert_eq!(defaults.get(key), None, "{heading}: {key}"),
                literal => {
                    let literal: Value = serde_json::from_str(literal.trim_matches('`')).unwrap();
                    assert_eq!(defaults.get(key), Some(&literal), "{heading}: {key}");
                }
            }
        }
    }
}
