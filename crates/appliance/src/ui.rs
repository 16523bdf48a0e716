//! Everything the command line prints, and the only module that prints.
//!
//! Results go to standard output, so that they can be piped; progress, warnings and errors go to standard error.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

static VERBOSITY: AtomicU8 = AtomicU8::new(1);

/// Sets how much [`step`] and [`note`] say: 0 errors only, 1 normal, 2 verbose.
pub fn set_verbosity(level: u8) {
    VERBOSITY.store(level, Ordering::Relaxed);
}

fn verbosity() -> u8 {
    VERBOSITY.load(Ordering::Relaxed)
}

/// Whether standard error is a terminal, so that colour and progress bars make sense.
pub fn interactive() -> bool {
    std::io::stderr().is_terminal()
}

fn paint(code: &str, text: &str) -> String {
    if interactive() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// One line of a command's result.
///
/// A closed pipe (`appliance status | head -1`) is not an error worth a message.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _closed_pipe = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Bytes of a command's result as they are, such as an app's own output.
pub fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _closed_pipe = out.write_all(bytes).and_then(|()| out.flush());
}

/// Bytes of an app's standard error as they are.
pub fn raw_error(bytes: &[u8]) {
    let mut out = std::io::stderr().lock();
    let _closed_pipe = out.write_all(bytes).and_then(|()| out.flush());
}

/// Rows in columns as wide as their widest cell.
pub fn table(heading: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let rows: Vec<Vec<String>> = std::iter::once(heading.iter().map(|cell| (*cell).to_owned()).collect())
        .chain(rows)
        .collect();
    let widths: Vec<usize> = (0..heading.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        line(cells.join("  ").trim_end());
    }
}

/// A value as pretty JSON on standard output.
pub fn json<T: serde::Serialize>(value: &T) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(error) => self::error(&format!("cannot print the result as JSON: {error}")),
    }
}

/// One line of progress on standard error; silent with `--quiet`.
pub fn note(text: &str) {
    if verbosity() >= 1 {
        eprintln!("{text}");
    }
}

/// One line only `--verbose` shows.
pub fn detail(text: &str) {
    if verbosity() >= 2 {
        eprintln!("{}", paint("2", text));
    }
}

/// Something that will hurt later but does not stop the command; silent with `--quiet`.
pub fn warn(text: &str) {
    if verbosity() >= 1 {
        eprintln!("{} {text}", paint("33", "warning:"));
    }
}

/// One line on standard error as it is, for what a program reads there.
pub fn complaint(text: &str) {
    eprintln!("{text}");
}

/// Why the command failed.
pub fn error(text: &str) {
    eprintln!("{} {text}", paint("31", "error:"));
}

/// What to run next.
pub fn hint(text: &str) {
    eprintln!("{} {text}", paint("36", "next:"));
}

/// Asks a person; `None` if nobody can answer.
pub fn ask(question: &str) -> Option<String> {
    if !(std::io::stdin().is_terminal() && interactive()) {
        return None;
    }
    eprint!("{question}");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).ok()?;
    Some(line.trim().to_owned())
}

/// A step with its duration: printed when it ends.
#[derive(Debug)]
pub struct Step {
    name: String,
    begun: Instant,
}

/// Begins a step; call [`Step::done`] or [`Step::failed`] with what came out of it.
pub fn step(name: &str) -> Step {
    Step {
        name: name.to_owned(),
        begun: Instant::now(),
    }
}

impl Step {
    fn seconds(&self) -> String {
        let elapsed = self.begun.elapsed();
        if elapsed.as_secs() >= 100 {
            format!("{} s", elapsed.as_secs())
        } else {
            format!("{:.1} s", elapsed.as_secs_f32())
        }
    }

    /// The step went well.
    pub fn done(self, what: &str) {
        let gap = if what.is_empty() { "" } else { ": " };
        note(&format!(
            "{} {}{gap}{what} ({})",
            paint("32", "✓"),
            self.name,
            self.seconds()
        ));
    }

    /// The step failed; the error itself is printed once, by `main`.
    pub fn failed(self) {
        note(&format!(
            "{} {} ({})",
            paint("31", "✗"),
            self.name,
            self.seconds()
        ));
    }
}

/// A progress bar over bytes; nothing is drawn where nobody watches.
#[derive(Debug, Clone)]
pub struct Bar(indicatif::ProgressBar);

/// Begins a bar of `total` bytes.
pub fn bar(total: u64) -> Bar {
    let bar = if interactive() && verbosity() >= 1 {
        indicatif::ProgressBar::new(total)
    } else {
        indicatif::ProgressBar::hidden()
    };
    // The words at the end are cut to the width that the terminal has at the moment, so that the line never wraps.
    if let Ok(style) = indicatif::ProgressStyle::with_template(
        "  {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}",
    ) {
        bar.set_style(style);
    }
    Bar(bar)
}

impl Bar {
    /// A few words beside the bar.
    pub fn say(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }

    /// How far it is.
    pub fn at(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Bytes as a person reads them: `1.4 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[allow(clippy::cast_precision_loss)]
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_fits() {
        for (count, expect) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (25 << 20, "25.0 MiB"),
        ] {
            assert_eq!(super::bytes(count), expect);
        }
    }
}
