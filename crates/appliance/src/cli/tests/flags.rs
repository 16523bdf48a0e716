//! Every flag of Kamal 2.12 followed to where its effect is asserted, or to why it means nothing here.

use super::parses;

/// Where the effect of a flag can be seen.
enum Effect {
    /// In a test, by its file below the workspace, and what stands there.
    Seen(&'static str, &'static str),
    /// Nowhere, for this reason.
    Nothing(&'static str),
}

use Effect::{Nothing, Seen};

const IMAGES: &str = "tests/it/images.rs";
const VERBS: &str = "tests/it/verbs.rs";
const KAMAL: &str = "tests/it/kamal.rs";
const BEHAVIOURS: &str = "tests/it/behaviours.rs";
const ACCESSORIES: &str = "tests/it/accessories.rs";

/// A command line with one flag of Kamal's, and its effect.
const TABLE: &[(&str, Effect)] = &[
    ("-v deploy", Seen(VERBS, r#""-v", "app", "version""#)),
    ("-q deploy", Seen(VERBS, r#""-q""#)),
    ("deploy --version 1", Seen(KAMAL, r#""--version""#)),
    ("-p app exec x", Seen(VERBS, r#""-p", "app", "exec""#)),
    ("-h web1 app version", Seen(VERBS, r#""-h", &ip"#)),
    ("-r web app boot", Seen(VERBS, r#""app", "containers", "-r""#)),
    ("-c other.yml deploy", Seen(VERBS, r#""-c", "config/other.yml""#)),
    ("-d staging deploy", Seen(VERBS, r#""version", "-d", "staging""#)),
    ("-H deploy", Seen(VERBS, r#""-H""#)),
    ("--lock-wait deploy", Seen(BEHAVIOURS, r#""--lock-wait=1""#)),
    (
        "--lock-wait-timeout 5 deploy",
        Seen(BEHAVIOURS, r#""--lock-wait-timeout""#),
    ),
    (
        "--lock-wait-interval 5 deploy",
        Seen(BEHAVIOURS, r#""--lock-wait-interval""#),
    ),
    ("setup -P", Seen("tests/it/verbs/hooks.rs", r#""redeploy", "-P""#)),
    (
        "deploy -P",
        Seen("tests/it/verbs/hooks.rs", r#""redeploy", "-P""#),
    ),
    (
        "redeploy -P",
        Seen("tests/it/verbs/hooks.rs", r#""redeploy", "-P""#),
    ),
    (
        "deploy --no-cache",
        Seen("crates/appliance/src/developer/build/tests.rs", "--no-cache"),
    ),
    ("build push --no-cache", Seen(IMAGES, r#""--no-cache""#)),
    (
        "build push --output docker",
        Seen("crates/appliance/src/developer/build/tests.rs", "type=docker"),
    ),
    ("build dev --output docker", Seen(IMAGES, r#""build", "dev""#)),
    (
        "init --bundle",
        Nothing("it adds a gem to the app; there is no gem to add"),
    ),
    ("remove -y", Seen(VERBS, r#""remove", "-y""#)),
    (
        "upgrade -y",
        Nothing("from Kamal 1 to 2: `appliance adopt` takes over what Kamal 2 runs"),
    ),
    ("upgrade --rolling", Nothing("as upgrade")),
    ("app exec -i x", Seen(KAMAL, "app exec -i --reuse sh")),
    ("app exec --reuse x", Seen(KAMAL, r#""--reuse""#)),
    ("app exec -e A:1 -- x", Seen(KAMAL, r#""A:x y""#)),
    ("app exec --detach x", Seen(VERBS, r#""--detach""#)),
    ("app exec --raw x", Seen(VERBS, r#""app", "exec", "--raw""#)),
    ("app logs -s 1h", Seen(VERBS, r#""app", "logs", "-s", "1h""#)),
    ("app logs -n 5", Seen(KAMAL, r#""app", "logs", "-n", "1", "-T""#)),
    ("app logs -g x", Seen(KAMAL, r#""--grep""#)),
    (
        "app logs -g x --grep-options -i",
        Seen(KAMAL, r#""--grep-options""#),
    ),
    (
        "app logs -f",
        Seen("tests/it/verbs/follow.rs", r#""app", "logs", "-f""#),
    ),
    ("app logs -T", Seen(KAMAL, r#""-T""#)),
    ("app logs --container-id x", Seen(VERBS, r#""--container-id""#)),
    (
        "app stale_containers -s",
        Seen(VERBS, r#""stale_containers", "--stop""#),
    ),
    ("app maintenance --message x", Seen(VERBS, r#""--message""#)),
    (
        "app maintenance --drain-timeout 5",
        Nothing("requests that are open are never cut off by maintenance, however long they take"),
    ),
    ("accessory exec db -i x", Seen(KAMAL, "app exec -i --reuse sh")),
    ("accessory exec db --reuse x", Seen(ACCESSORIES, r#""--reuse""#)),
    (
        "accessory exec db --raw x",
        Nothing("output is never changed; with one host there is no prefix to leave out"),
    ),
    ("accessory logs db -n 5", Seen(ACCESSORIES, r#""--lines""#)),
    ("accessory remove db -y", Seen(ACCESSORIES, r#""-y""#)),
    (
        "accessory upgrade db --rolling",
        Nothing("an accessory is upgraded on one host after the other anyway"),
    ),
    (
        "lock acquire -m x",
        Seen(BEHAVIOURS, r#""lock", "acquire", "-m""#),
    ),
    ("proxy reboot -y", Seen(VERBS, r#""proxy", "reboot", "-y""#)),
    (
        "proxy reboot --rolling",
        Seen(VERBS, r#""proxy", "reboot", "--rolling""#),
    ),
    ("proxy logs -s 1h", Seen(VERBS, r#""proxy", "logs", "--since""#)),
    ("proxy logs -n 5", Seen(VERBS, r#""proxy", "logs", "-n""#)),
    ("proxy logs -g x", Seen(VERBS, r#""proxy", "logs", "--grep""#)),
    (
        "proxy logs -f",
        Seen("tests/it/verbs/follow.rs", r#""app", "logs", "-f""#),
    ),
    ("proxy logs -T", Seen(VERBS, r#""-T""#)),
    (
        "proxy remove --force",
        Nothing("the proxy is the host's; the command says so"),
    ),
    (
        "proxy boot_config set --http-port 80",
        Nothing("ports and limits are the host's (host.yml); the command says so"),
    ),
    ("prune containers --retain 1", Seen(VERBS, r#""--retain""#)),
    ("registry login -L", Seen(IMAGES, r#""-L""#)),
    (
        "registry login -R",
        Nothing("hosts never log in: a release carries its credentials"),
    ),
    ("secrets fetch -a x A", Seen(VERBS, r#""--adapter""#)),
    (
        "secrets fetch -a x --account me A",
        Seen("crates/config/src/secrets/adapters/tests.rs", "account"),
    ),
    (
        "secrets fetch -a x --from y A",
        Seen("crates/config/src/secrets/adapters/tests.rs", "from"),
    ),
    ("server exec -i x", Seen(VERBS, r#""server", "exec", "-i""#)),
    ("server exec --raw x", Seen(VERBS, r#""server", "exec", "--raw""#)),
];

#[test]
fn every_flag_of_kamal_has_its_effect_asserted_or_a_reason_for_none() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut wrong = Vec::new();
    for (line, effect) in TABLE {
        if let Err(error) = parses(line) {
            wrong.push(format!("{line}: {error}"));
        }
        match effect {
            Seen(file, what) => {
                let text = fs_err::read_to_string(root.join(file)).expect("a file of the workspace");
                // Long lists are laid out one word a line.
                let flat: String = text.split_whitespace().collect();
                let what: String = what.split_whitespace().collect();
                if !flat.contains(&what) {
                    wrong.push(format!("{line}: {file} has no {what}"));
                }
            }
            Nothing(why) => assert!(!why.is_empty(), "{line}"),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
