//! Hands a template to an installed `ruby` when it needs more than the native subset.
//!
//! The driver travels on standard input, so nothing is written to disk and nothing of the template reaches a shell.

use std::path::Path;

use super::{Context, ErbError};
use crate::runner::Invocation;

/// Renders `DATA`-style input: the driver, `__END__`, then the template.
/// Like Kamal: dotenv and ActiveSupport's `presence` are there if installed, trim mode is `-`.
const DRIVER: &str = r#"
require "erb"
require "json"
begin
  require "active_support"
  require "active_support/core_ext/object/blank"
rescue LoadError
end
template = DATA.read.force_encoding("UTF-8")
before = ENV.to_h
begin
  text = ERB.new(template, trim_mode: "-").result
  changed = ENV.to_h.reject { |k, v| before[k] == v }
  gone = before.keys - ENV.keys
  $stdout.write JSON.generate("text" => text, "set" => changed, "gone" => gone)
rescue Exception => e
  line = e.backtrace_locations&.find { |l| l.path == "(erb)" }&.lineno || e.message[/\(erb\):(\d+)/, 1].to_i
  $stdout.write JSON.generate("class" => e.class.name, "message" => e.message, "line" => line)
end
__END__
"#;

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Answer {
    Text {
        text: String,
        set: std::collections::BTreeMap<String, String>,
        gone: Vec<String>,
    },
    Raised {
        class: String,
        message: String,
        line: usize,
    },
}

pub(super) fn render(
    text: &str,
    file: &Path,
    ruby: &Path,
    ctx: &mut Context<'_>,
) -> Result<String, ErbError> {
    let trouble = |source| ErbError::Run {
        line: 1,
        program: format!("{} for {}", ruby.display(), file.display()),
        source,
    };
    let outcome = ctx
        .runner
        .run(&Invocation {
            argv: vec![ruby.to_string_lossy().into_owned(), "-".to_owned()],
            env: ctx.env.clone(),
            directory: ctx.directory.clone(),
            stdin: Some(format!("{}{text}", DRIVER.trim_start()).into_bytes()),
        })
        .map_err(trouble)?;
    // What the template itself printed comes before the answer, which is the last line.
    let printed = String::from_utf8_lossy(&outcome.stdout);
    let answer = printed.lines().next_back().unwrap_or("");
    match serde_json::from_str(answer) {
        Ok(Answer::Text { text, set, gone }) => {
            for name in gone {
                ctx.env.remove(&name);
            }
            ctx.env.extend(set);
            Ok(text)
        }
        Ok(Answer::Raised { class, message, line }) => Err(ErbError::Raised {
            line: line.max(1),
            column: 1,
            class,
            message: message.lines().next().unwrap_or_default().to_owned(),
        }),
        Err(_) => Err(trouble(std::io::Error::other(match outcome.stderr.as_str() {
            "" => format!("it gave no answer (exit code {:?})", outcome.code),
            said => said.to_owned(),
        }))),
    }
}
