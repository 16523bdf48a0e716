use appliance_push::change::{Digest, Fingerprint};
use appliance_state::Store;
use jiff::Timestamp;
use serde_json::json;

use super::*;

fn release(version: &str, roles: &[&str]) -> change::Release {
    let digest = Digest::of(version.as_bytes());
    let role = |name: &&str| json!({ "name": name, "primary": *name == "web" });
    serde_json::from_value(json!({
        "service": "shop",
        "version": version,
        "host": "one.example",
        "image": {
            "repository": "shop",
            "digest": digest,
            "tag": version,
            "platform": { "os": "linux", "architecture": "amd64" },
        },
        "roles": roles.iter().map(role).collect::<Vec<_>>(),
        "deploy_timeout": 30,
        "drain_timeout": 30,
        "readiness_delay": 7,
        "retain": 5,
        "sealed_secrets": "",
        "config_digest": digest,
        "created_by": "someone",
    }))
    .expect("a release")
}

fn role_name(name: &str) -> RoleName {
    RoleName::parse(name).expect("a role")
}

fn shop() -> (tempfile::TempDir, Apps) {
    let directory = tempfile::tempdir().expect("directory");
    let apps = Apps::new(Store::open(directory.path().join("state")).expect("store"));
    let signer = Fingerprint::parse(&format!("SHA256:{}", "A".repeat(43))).expect("a fingerprint");
    for (version, roles) in [
        ("first", &["web", "jobs"][..]),
        ("second", &["web"]),
        ("third", &["jobs", "web"]),
    ] {
        apps.accept("shop", &release(version, roles), &signer, Timestamp::UNIX_EPOCH)
            .expect("accepted");
    }
    (directory, apps)
}

/// `role@release#rollout`, the primary one first.
fn shown(deployment: &Deployment) -> Vec<String> {
    let shown = |role: &Role| {
        let origin = deployment.origin(role);
        format!("{}@{}{}", role.name, origin.release, origin.rollout)
    };
    deployment.roles.iter().map(shown).collect()
}

fn all_of(apps: &Apps, release: u64, rollout: u64) -> Deployment {
    let state = apps.read("shop").expect("read");
    let number = ReleaseNumber(release);
    let wish = Wish {
        release: number,
        roles: apps.composition("shop", &state, number).expect("composed"),
        only: &[],
    };
    apps.deployment("shop", &wish, None, RolloutNumber(rollout))
        .expect("there")
}

#[test]
fn a_part_is_rolled_out_beside_what_runs_and_comes_back_as_it_was() {
    let (_keep, apps) = shop();
    let first = all_of(&apps, 1, 1);
    assert_eq!(shown(&first), ["web@v1#1", "jobs@v1#1"]);

    let web = [role_name("web")];
    let wish = Wish {
        release: ReleaseNumber(2),
        roles: BTreeMap::from([("web".to_owned(), ReleaseNumber(2))]),
        only: &web,
    };
    let partial = apps
        .deployment("shop", &wish, Some(&first), RolloutNumber(2))
        .expect("there");
    assert_eq!(shown(&partial), ["web@v2#2", "jobs@v1#1"]);
    let parts = apps.parts("shop", &partial).expect("there");
    let versions: Vec<String> = parts
        .iter()
        .map(|part| part.accepted.release.version.to_string())
        .collect();
    assert_eq!(versions, ["second", "first"]);

    // Everything moves on, and then back to what stood together.
    apps.update("shop", |state| {
        let beside = BTreeMap::from([("jobs".to_owned(), ReleaseNumber(1))]);
        state.beside.insert(ReleaseNumber(2), beside);
    })
    .expect("written");
    assert_eq!(shown(&all_of(&apps, 3, 3)), ["web@v3#3", "jobs@v3#3"]);
    assert_eq!(shown(&all_of(&apps, 2, 4)), ["web@v2#4", "jobs@v1#4"]);
}

#[test]
fn one_role_goes_back_and_the_other_stays() {
    let (_keep, apps) = shop();
    let third = all_of(&apps, 3, 3);
    let state = apps.read("shop").expect("read");
    let jobs = [role_name("jobs")];
    let wish = Wish {
        release: ReleaseNumber(1),
        roles: apps
            .composition("shop", &state, ReleaseNumber(1))
            .expect("composed"),
        only: &jobs,
    };
    let back = apps
        .deployment("shop", &wish, Some(&third), RolloutNumber(4))
        .expect("there");
    assert_eq!(shown(&back), ["web@v3#3", "jobs@v1#4"]);
}

#[test]
fn a_role_that_a_release_lacks_leaves_nothing_to_roll_out() {
    let (_keep, apps) = shop();
    let third = all_of(&apps, 3, 3);
    let nobody = [role_name("cron")];
    let wish = Wish {
        release: ReleaseNumber(1),
        roles: BTreeMap::from([("web".to_owned(), ReleaseNumber(1))]),
        only: &nobody,
    };
    let same = apps
        .deployment("shop", &wish, Some(&third), RolloutNumber(4))
        .expect("there");
    assert_eq!(shown(&same), ["web@v3#3", "jobs@v3#3"]);
}
