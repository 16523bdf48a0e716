//! Commands in an accessory's container, or in one like it, joined to somebody's terminal or pipes.

use appliance_containers::ContainerSpec;
use appliance_containers::engine::ExecRequest;
use appliance_containers::session::{Session, TerminalSize};
use appliance_containers::spec::Restart;

use super::act::not_booted;
use super::{LABEL, Which, hex8};
use crate::agent::Agent;

impl Agent {
    /// Starts a command; with the container that has to be removed afterwards, if it got one of its own.
    ///
    /// # Errors
    /// When the accessory was not booted, or Docker does not start it.
    pub async fn accessory_session(
        &self,
        app: &str,
        name: &str,
        command: &[String],
        reuse: bool,
        size: Option<TerminalSize>,
    ) -> anyhow::Result<(Session, Option<String>)> {
        let which = Which {
            app: app.to_owned(),
            name: name.to_owned(),
        };
        let record = self.accessories.records.read(&which)?;
        let Some(made) = &record.made else {
            return Err(not_booted(&which));
        };
        if reuse {
            let found = self
                .container_of(&record)
                .await?
                .ok_or_else(|| not_booted(&which))?;
            let request = ExecRequest {
                command: command.to_vec(),
                ..ExecRequest::default()
            };
            let session = self.docker.exec_session(&found.id.0, &request, size).await?;
            return Ok((session, None));
        }
        let definition = made
            .definition
            .clone()
            .or(record.definition.clone())
            .ok_or_else(|| not_booted(&which))?;
        let opened = self.open_accessory(&definition)?;
        let image = self.image_of(&made.pin, &definition, &opened).await?;
        let mut spec = self.accessory_spec(&which, &definition, &opened, &record.sources, &image)?;
        spec = ContainerSpec {
            name: format!("{}-exec-{}", definition.container, hex8()),
            cmd: Some(command.to_vec()),
            restart: Restart::No,
            publish: Vec::new(),
            health: None,
            ..spec
        };
        spec.tuning.no_healthcheck = true;
        spec.tuning.publish_all = false;
        spec.tuning.tty = size.is_some();
        spec.tuning.interactive = true;
        spec.tuning.joined = true;
        spec.labels.remove(LABEL);
        spec.labels.remove("service");
        spec.labels
            .insert(crate::agent::exec::EXEC.to_owned(), which.to_string());
        let id = self.docker.create(&spec).await?.0;
        match self.docker.start_session(&id, size).await {
            Ok(session) => Ok((session, Some(id))),
            Err(error) => {
                let _kept = self.docker.remove_keeping_volumes(&id, true).await;
                Err(error.into())
            }
        }
    }
}
