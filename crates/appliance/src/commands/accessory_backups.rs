//! Backups of accessories on servers of their own: no release goes there, so their jobs travel by themselves.

use std::collections::{BTreeMap, BTreeSet};

use appliance_push::change::{AccessoryName, BackupAction, Verb};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::accessory::{Place, Places};
use crate::agent::backups::Spec;
use crate::agent::identity;
use crate::developer::project::Project;
use crate::ui;
use crate::wire::{self, End};

/// Tells every such server what of `name` is backed up there, and where nothing is any more.
///
/// # Errors
/// When a credential is missing, a server cannot be asked or refuses.
pub async fn tell(places: &Places) -> anyhow::Result<()> {
    let Some(project) = places.project() else {
        return Ok(());
    };
    let with_release: BTreeSet<&String> = project
        .loaded
        .config
        .roles
        .iter()
        .flat_map(|role| &role.hosts)
        .collect();
    for place in places
        .hosts
        .iter()
        .filter(|place| !with_release.contains(&place.host))
    {
        let app: wire::App = place.link.get(&format!("/v1/apps/{}", places.app)).await?;
        for name in &place.names {
            let known = app.backups.iter().any(|job| job.accessory == name.as_str());
            let Some(action) = action(project, place, name, known)? else {
                continue;
            };
            let ended = places
                .submit(
                    place,
                    Verb::Backup {
                        accessory: name.clone(),
                        action,
                    },
                )
                .await?;
            if let End::Done { message, .. } = ended {
                ui::note(&format!("{}: {message}", place.host));
            }
        }
    }
    Ok(())
}

/// What a server is told of one accessory; nothing where it has nothing to forget.
fn action(
    project: &Project,
    place: &Place,
    name: &AccessoryName,
    known: bool,
) -> anyhow::Result<Option<BackupAction>> {
    let none = BackupAction::Set {
        spec: None,
        sealed: String::new(),
    };
    let accessories = &project.loaded.config.accessories;
    let accessory = accessories
        .iter()
        .find(|accessory| accessory.name == name.as_str());
    let settings = project.loaded.extension.backups.get(name.as_str());
    let (Some(accessory), Some(settings)) = (accessory, settings) else {
        return Ok(known.then_some(none));
    };
    let mut sealed = String::new();
    if settings.to.0.starts_with("s3://") {
        let names = &settings.credentials;
        let wanted = BTreeSet::from([names.access_key_id.clone(), names.secret_access_key.clone()]);
        let secrets: BTreeMap<String, String> = project.secrets(&wanted)?;
        sealed = BASE64.encode(identity::seal(place.id.as_str(), &secrets)?);
    }
    let spec = Spec {
        accessory: accessory.name.clone(),
        container: accessory.service_name.clone(),
        image: accessory.image.clone(),
        settings: settings.clone(),
    };
    Ok(Some(BackupAction::Set {
        spec: Some(serde_json::to_value(spec)?),
        sealed,
    }))
}
