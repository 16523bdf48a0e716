//! placeholder
use crate::globals::Globals;
/// Send
#[derive(Debug, clap::Args)]
pub struct PushArgs {}
/// x
pub async fn run(_a: &PushArgs, _g: &Globals) -> anyhow::Result<()> {
    Ok(())
}
