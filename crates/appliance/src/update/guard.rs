//! A timer that goes back unless somebody finds the new program healthy: it holds when the updater is killed, and after a reboot.

use std::path::Path;

use appliance_bootstrap::Local;
use appliance_bootstrap::host::{Command, must};

const SERVICE: &str = "/etc/systemd/system/appliance-update-revert.service";
const TIMER: &str = "/etc/systemd/system/appliance-update-revert.timer";

/// Seconds until it goes back; more than all checks of an update may take together.
const PATIENCE: u64 = 240;

/// Arms it.
pub(super) fn arm() -> anyhow::Result<()> {
    let service = format!(
        "# managed by appliance: there while an update has not settled\n\
         [Unit]\nDescription=Back to the former appliance\nConditionPathExists={guarded}\n\n\
         [Service]\nType=oneshot\nExecStart={guarded} update --revert\n",
        guarded = super::GUARDED
    );
    let timer = format!(
        "# managed by appliance: there while an update has not settled\n\
         [Unit]\nDescription=Back to the former appliance, unless the new one is healthy\n\n\
         [Timer]\nOnActiveSec={PATIENCE}\nAccuracySec=1\n\n[Install]\nWantedBy=timers.target\n"
    );
    appliance_state::atomic::write(Path::new(SERVICE), service.as_bytes(), 0o644)?;
    appliance_state::atomic::write(Path::new(TIMER), timer.as_bytes(), 0o644)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--quiet", "--now", "appliance-update-revert.timer"])
}

/// Disarms it; it may be the one who runs us.
pub(super) fn disarm() -> anyhow::Result<()> {
    if !Path::new(TIMER).exists() {
        return Ok(());
    }
    systemctl(&["disable", "--quiet", "--now", "appliance-update-revert.timer"])?;
    for path in [TIMER, SERVICE] {
        if Path::new(path).exists() {
            fs_err::remove_file(path)?;
        }
    }
    systemctl(&["daemon-reload"])
}

fn systemctl(argv: &[&str]) -> anyhow::Result<()> {
    let command = Command::new(["systemctl"].iter().chain(argv).copied());
    must(&Local, &command)?;
    Ok(())
}
