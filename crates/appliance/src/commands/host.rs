//! `appliance firewall`.

/// Look after this host's firewall
#[derive(Debug, clap::Subcommand)]
pub enum FirewallCommand {
    /// Load the confirmed rules into the kernel (what the boot unit runs)
    Load,
    /// Show whether the kernel holds the confirmed rules
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs a firewall command.
///
/// # Errors
/// When there are no confirmed rules or the kernel does not take them.
pub fn run(command: &FirewallCommand) -> anyhow::Result<()> {
    let _ = command;
    anyhow::bail!("firewall is being built")
}
