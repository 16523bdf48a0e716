use super::*;

pub(crate) fn rules() -> Rules {
    Rules {
        ssh_ports: BTreeSet::from([22]),
        openings: [80, 443]
            .map(|port| Opening {
                ports: Ports::tcp(port),
                from: Vec::new(),
                comment: String::new(),
                source: Source::Builtin,
            })
            .to_vec(),
        block_metadata: true,
        bans: true,
        ..Rules::default()
    }
}

fn opening(ports: &str, from: &[&str]) -> Opening {
    Opening {
        ports: ports.parse().expect("ports"),
        from: from.iter().map(|net| net.parse().expect("network")).collect(),
        comment: String::new(),
        source: Source::HostYml,
    }
}

#[test]
fn the_default_table_is_the_golden_one() {
    let golden = include_str!("golden.nft");
    assert_eq!(
        rules().render(),
        golden,
        "if this change is meant, write the new text to golden.nft"
    );
}

#[test]
fn the_file_holds_the_rules_it_was_rendered_from() {
    let mut rules = rules();
    rules.openings.push(Opening {
        comment: "\n@MODEL@ } # accept @TCP@".to_owned(),
        ..opening("5432", &["10.0.5.0/24", "fd00::/8"])
    });
    let text = rules.render();
    assert_eq!(Rules::from_file(&text), Some(rules));
    assert_eq!(
        text.lines().filter(|line| line.contains("accept @TCP@")).count(),
        1,
        "only in the comment"
    );
    assert_eq!(Rules::from_file("table inet appliance\n"), None);
}

#[test]
fn openings_appear_where_they_belong() {
    let mut rules = rules();
    rules.ssh_ports = BTreeSet::from([22, 2222]);
    rules.from_containers = BTreeSet::from([53]);
    rules.trusted = BTreeSet::from(["wg0".to_owned()]);
    rules.openings.push(opening("5432", &["10.0.5.0/24", "fd00::/8"]));
    rules.openings.push(opening("6000-6010/udp", &[]));
    let text = rules.render();
    for expect in [
        "set ssh_ports { type inet_service; elements = { 22, 2222 } }",
        "elements = { tcp . 53, udp . 53 }",
        "set ext_udp { type inet_service; flags interval; auto-merge; elements = { 6000-6010 } }",
        "set trusted_if { type ifname; elements = { \"lo\", \"wg0\" } }",
        "    ip saddr 10.0.5.0/24 meta l4proto tcp ct original proto-dst 5432 accept\n",
        "    ip6 saddr fd00::/8 meta l4proto tcp ct original proto-dst 5432 accept\n",
    ] {
        assert!(text.contains(expect), "{expect}\n{text}");
    }
    let strangers = text
        .lines()
        .find(|line| line.contains("set ext_tcp"))
        .expect("set");
    assert!(!strangers.contains("5432"), "{strangers}");
}

#[test]
fn in_ufws_mode_there_is_no_input_chain_and_its_order_is_kept() {
    let mut rules = rules();
    rules.mode = Mode::Ufw;
    rules.openings.clear();
    rules.ufw = ufw::parse(
        "### tuple ### deny tcp 8080 0.0.0.0/0 any 198.51.100.7 in\n### tuple ### allow tcp 8080 0.0.0.0/0 any 0.0.0.0/0 in\n",
    )
    .lines;
    let text = rules.render();
    assert!(!text.contains("hook input"), "{text}");
    let place = |what: &str| text.find(what).expect(what);
    assert!(place("ip saddr 198.51.100.7 meta l4proto tcp") < place("meta nfproto ipv4 meta l4proto tcp"));
    let from = |address: &str| {
        let address = address.parse().expect("address");
        rules
            .ufw_says(Protocol::Tcp, 8080, address)
            .map(|line| line.allow)
    };
    assert_eq!(
        (from("198.51.100.7"), from("198.51.100.8"), from("2001:db8::1")),
        (Some(false), Some(true), None)
    );
}

#[test]
fn ssh_from_some_networks_only_is_refused_to_others() {
    let mut rules = rules();
    assert!(rules.admits_ssh("203.0.113.9".parse().expect("address")));
    rules.ssh_from = BTreeSet::from(["203.0.113.0/24".parse().expect("network")]);
    assert!(rules.admits_ssh("203.0.113.9".parse().expect("address")));
    assert!(!rules.admits_ssh("198.51.100.9".parse().expect("address")));
    let text = rules.render();
    assert!(
        text.contains("    ip saddr 203.0.113.0/24 tcp dport @ssh_ports accept\n"),
        "{text}"
    );
    assert!(!text.contains("    tcp dport @ssh_ports accept\n"), "{text}");
}

#[test]
fn a_change_says_what_opens_and_what_closes() {
    let before = rules();
    let mut after = before.clone();
    after.openings.remove(1);
    after.openings.push(opening("8080", &[]));
    assert_eq!(
        after.changes_from(Some(&before)),
        ["open 8080/tcp to everyone", "close 443/tcp to everyone"]
    );
    assert_eq!(before.changes_from(None), ["close every port but 22, 80, 443"]);
}

#[test]
fn connections_over_a_closed_port_are_cut_and_a_routed_network_is_let_through_twice() {
    let mut rules = rules();
    rules.cut.insert("5432".parse().expect("ports"));
    rules.routed.push(Routed {
        network: "fd00:77::/64".parse().expect("network"),
        ports: "80".parse().expect("ports"),
        from: vec![
            "2001:db8::/32".parse().expect("network"),
            "10.0.0.0/8".parse().expect("network"),
        ],
    });
    let text = rules.render();
    assert_eq!(Rules::from_file(&text), Some(rules.clone()));
    let place = |words: &str| text.find(words).unwrap_or_else(|| panic!("{words}: {text}"));
    let cut =
        place("ct direction original meta l4proto tcp ct original proto-dst 5432 reject with tcp reset");
    assert!(
        place("    jump cut\n") < place("ct state established,related accept"),
        "before it is let through"
    );
    assert!(
        place("chain cut {\n    iifname != @outside_if meta iifkind \"bridge\" return\n") < cut
            && !text.contains("iifname @outside_if ct state established"),
        "also of a neighbour on a private network"
    );
    let routed = "    ip6 saddr 2001:db8::/32 ip6 daddr fd00:77::/64 tcp dport 80 accept\n";
    assert_eq!(text.matches(routed).count(), 2, "early, and when it is passed on");
    assert!(!text.contains("10.0.0.0/8 ip6"), "of its own family only");
    assert!(place(routed) < place("counter name c_direct drop"));
}
