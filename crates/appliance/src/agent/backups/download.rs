//! A stored backup as it is: sealed. Who downloads it needs the recovery key to open it.

use std::sync::Arc;

use anyhow::Context as _;
use appliance_backup::names::BackupId;
use appliance_backup::repository::{Found, Repository};
use appliance_backup::volumes;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Response, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::agent::api::Body;

impl Agent {
    /// One backup of an accessory, wherever it was made.
    async fn stored(&self, app: &str, accessory: &str, id: &str) -> anyhow::Result<(Repository, Found)> {
        let id = BackupId::parse(id)?;
        let job = self.backup_job(app, accessory)?;
        let repository = self.repository(&job).await?;
        for (_, catalogue) in job.subjects(&repository).await? {
            if let Some(found) = catalogue
                .backups
                .into_iter()
                .find(|found| found.manifest.id == id)
            {
                return Ok((repository, found));
            }
        }
        anyhow::bail!("there is no backup {id} of {accessory}; next: appliance backup list")
    }

    /// A backup's manifest, as JSON.
    ///
    /// # Errors
    /// When there is no such backup, or its place cannot be reached.
    pub async fn backup_manifest(
        &self,
        app: &str,
        accessory: &str,
        id: &str,
    ) -> anyhow::Result<appliance_backup::manifest::Manifest> {
        Ok(self.stored(app, accessory, id).await?.1.manifest)
    }

    /// A backup's content, its volumes one after the other, each compared with its digest on the way.
    ///
    /// # Errors
    /// When there is no such backup, or its place cannot be reached. What fails later breaks the answer off.
    pub async fn backup_content(
        &self,
        app: &str,
        accessory: &str,
        id: &str,
    ) -> anyhow::Result<Response<Body>> {
        let (repository, found) = self.stored(app, accessory, id).await?;
        let manifest = found.manifest;
        let (chunks, mut arriving) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let size: u64 = manifest.volumes.iter().map(|volume| volume.size).sum();
        tokio::spawn(volumes::fetch(
            Arc::clone(&repository.store),
            manifest.subject.key(&manifest.id, ""),
            manifest.volumes,
            chunks,
        ));
        let frames = futures_util::stream::poll_fn(move |context| arriving.poll_recv(context))
            .map(|chunk| chunk.map(Frame::data));
        Response::builder()
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, size)
            .body(Body::new(StreamBody::new(frames)))
            .context("an answer")
    }
}
