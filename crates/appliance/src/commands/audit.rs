//! `appliance audit`: the record of changes and refusals, and the proof that it is whole.

use crate::commands::status::links;
use crate::developer::reach::ReachArgs;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::AuditProof;

/// Show the record of changes and refusals, and prove it whole
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// How many records, newest last
    #[arg(long, default_value_t = 50)]
    last: usize,
    /// Check that no record was removed or altered
    #[arg(long)]
    verify: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Shows or verifies the audit log of every host.
///
/// # Errors
/// When a host cannot be reached, or its log is broken.
pub async fn run(args: &AuditArgs, globals: &Globals) -> anyhow::Result<()> {
    for link in links(&args.reach, globals).await? {
        if args.verify {
            let proof: AuditProof = link.get("/v1/audit/verify").await?;
            if args.json {
                ui::json(&proof);
            }
            match proof {
                AuditProof::Whole { records } if !args.json => {
                    ui::line(&format!(
                        "{}: all {records} records are there, unaltered",
                        link.name()
                    ));
                }
                AuditProof::Whole { .. } => {}
                AuditProof::Broken { line, why } => {
                    return Err(failure(
                        Kind::Other,
                        format!("{}: the audit log is broken at line {line}: {why}", link.name()),
                    )
                    .hint("keep the file as evidence: cp /var/lib/appliance/audit.log elsewhere; then look who had root")
                    .into());
                }
            }
            continue;
        }
        let records: Vec<appliance_state::Record> =
            link.get(&format!("/v1/audit?last={}", args.last)).await?;
        if args.json {
            ui::json(&records);
            continue;
        }
        for record in records {
            let result = serde_json::to_value(record.result)?;
            let detail = if record.detail.is_null() {
                String::new()
            } else {
                format!("  {}", record.detail)
            };
            ui::line(&format!(
                "{:>6} {} {:<8} {:<12} {} {}{detail}",
                record.seq,
                record.at,
                result.as_str().unwrap_or_default(),
                record.verb,
                record.app.as_deref().unwrap_or("-"),
                record.who,
            ));
        }
    }
    Ok(())
}
