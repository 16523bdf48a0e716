//! Names and labels as Kamal gives them, so that its tools recognise our containers.

use std::collections::BTreeMap;

/// `<service>-<role>[-<destination>]-<version>`: the container's name.
pub fn container(service: &str, role: &str, destination: Option<&str>, version: &str) -> String {
    format!("{}-{version}", role_prefix(service, role, destination))
}

/// `<service>-<role>[-<destination>]`: the name of the proxy's service, and of everything that belongs to a role.
pub fn role_prefix(service: &str, role: &str, destination: Option<&str>) -> String {
    match destination {
        Some(destination) => format!("{service}-{role}-{destination}"),
        None => format!("{service}-{role}"),
    }
}

/// The container's hostname: 51 characters of the host's name without a trailing dot, `-`, and 12 hex digits.
///
/// Linux allows 64.
pub fn hostname(host: &str, random: [u8; 6]) -> String {
    let host: String = host.chars().take(51).collect();
    let host = host.trim_end_matches('.');
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{host}-{hex}")
}

/// The labels `service`, `role` and `destination`; the last is empty if there is none.
pub fn labels(service: &str, role: &str, destination: Option<&str>) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("service".to_owned(), service.to_owned()),
        ("role".to_owned(), role.to_owned()),
        (
            "destination".to_owned(),
            destination.unwrap_or_default().to_owned(),
        ),
    ])
}

/// The name a container is moved to when another needs its own: `<name>_replaced_<16 hex digits>`.
pub fn replaced(name: &str, random: [u8; 8]) -> String {
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}_replaced_{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kamals() {
        assert_eq!(container("app", "web", None, "abc123"), "app-web-abc123");
        assert_eq!(
            container("app", "web", Some("staging"), "abc123"),
            "app-web-staging-abc123"
        );
        assert_eq!(role_prefix("app", "jobs", None), "app-jobs");
        assert_eq!(labels("app", "web", None)["destination"], "");
        assert_eq!(
            replaced("app-web-1", [0xab; 8]),
            "app-web-1_replaced_abababababababab"
        );
    }

    #[test]
    fn hostnames_fit_and_keep_no_dot_before_the_dash() {
        assert_eq!(hostname("1.1.1.1", [1, 2, 3, 4, 5, 0xff]), "1.1.1.1-0102030405ff");
        assert_eq!(hostname("example.com.", [0; 6]), "example.com-000000000000");
        let long = hostname(&"a".repeat(200), [0; 6]);
        assert_eq!(long.len(), 64);
        let cut_at_dot = hostname(&format!("{}.{}", "a".repeat(50), "b".repeat(20)), [0; 6]);
        assert_eq!(cut_at_dot, format!("{}-000000000000", "a".repeat(50)));
    }
}
