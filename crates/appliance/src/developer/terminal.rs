//! The developer's terminal: raw while a session lasts, and as it was afterwards.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Puts the terminal of the standard input into raw mode, until it is dropped.
///
/// Every key, Ctrl-C included, then goes to the program on the host.
pub struct Raw(Termios);

impl Raw {
    /// Whether there is a terminal to speak of.
    pub fn possible() -> bool {
        std::io::stdin().is_terminal()
    }

    /// Makes it raw.
    ///
    /// # Errors
    /// When the standard input is no terminal.
    pub fn enter() -> std::io::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _gone = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0);
    }
}

/// Rows and columns of the terminal; 24 by 80 where nobody knows.
pub fn size() -> (u16, u16) {
    let found = terminal_size::terminal_size_of(std::io::stdin())
        .or_else(|| terminal_size::terminal_size_of(std::io::stdout()));
    found.map_or((24, 80), |(width, height)| (height.0, width.0))
}
