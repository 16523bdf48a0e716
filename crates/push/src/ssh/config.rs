//! `~/.ssh/config`, as far as reaching a host needs it (`ssh_config(5)`).
//!
//! Read: `Host` with patterns, `Include`, `HostName`, `User`, `Port`, `IdentityFile`, `IdentitiesOnly`, `IdentityAgent`,
//! `ProxyJump`, `ProxyCommand`, `UserKnownHostsFile`, `StrictHostKeyChecking`, `HostKeyAlias`, `ConnectTimeout`.
//! The first value found counts, as in OpenSSH.
//! `Match all` is read; other `Match` blocks need commands or facts we do not have and are passed over.

use std::path::{Path, PathBuf};

use super::SshError;

/// How deep `Include` may go, as in OpenSSH.
const INCLUDE_DEPTH: usize = 16;

/// What the configuration says about one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Name or address to connect to.
    pub host_name: Option<String>,
    /// Login name.
    pub user: Option<String>,
    /// TCP port.
    pub port: Option<u16>,
    /// Private keys to offer, with `~` and `%` resolved.
    pub identities: Vec<PathBuf>,
    /// Whether the agent's other keys are left out.
    pub identities_only: Option<bool>,
    /// Agent socket; `None` inside means that no agent is to be used.
    pub identity_agent: Option<Option<PathBuf>>,
    /// Jump hosts, first hop first; empty means none although something more general says so.
    pub proxy_jump: Option<Vec<String>>,
    /// A command that carries the connection; we do not run it.
    pub proxy_command: Option<String>,
    /// Files with known host keys.
    pub known_hosts: Option<Vec<PathBuf>>,
    /// `yes`, `accept-new`, `no`, `ask`.
    pub strict: Option<String>,
    /// Name under which the host key is known.
    pub host_key_alias: Option<String>,
    /// Seconds.
    pub connect_timeout: Option<u64>,
}

/// What `%` and `~` stand for.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The user's home directory.
    pub home: Option<&'a Path>,
    /// The local login name.
    pub local_user: Option<&'a str>,
}

/// Reads what `files` (most important first) say about `host`; files that are not there say nothing.
///
/// # Errors
/// When a file cannot be read or a value makes no sense; the error names file and line.
pub fn lookup(files: &[PathBuf], host: &str, around: Surroundings<'_>) -> Result<HostConfig, SshError> {
    let mut found = HostConfig::default();
    for file in files {
        read(file, host, around, &mut found, 0)?;
    }
    let name = found
        .host_name
        .as_deref()
        .unwrap_or(host)
        .replace("%h", host)
        .replace("%%", "%");
    let resolve = |text: &str| {
        let user = found.user.as_deref().or(around.local_user).unwrap_or_default();
        let port = found.port.unwrap_or(22).to_string();
        let home = around
            .home
            .map(|home| home.to_string_lossy().into_owned())
            .unwrap_or_default();
        let mut out = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match (c, if c == '%' { chars.next() } else { None }) {
                ('%', Some('h')) => out.push_str(&name),
                ('%', Some('n')) => out.push_str(host),
                ('%', Some('r')) => out.push_str(user),
                ('%', Some('u')) => out.push_str(around.local_user.unwrap_or_default()),
                ('%', Some('p')) => out.push_str(&port),
                ('%', Some('d')) => out.push_str(&home),
                ('%', Some('%')) => out.push('%'),
                ('%', Some(other)) => out.extend(['%', other]),
                (c, _) => out.push(c),
            }
        }
        tilde(&out, around.home)
    };
    let path = |path: &PathBuf| resolve(&path.to_string_lossy());
    found.identities = found.identities.iter().map(path).collect();
    found.known_hosts = found
        .known_hosts
        .as_ref()
        .map(|files| files.iter().map(path).collect());
    found.identity_agent = found
        .identity_agent
        .as_ref()
        .map(|agent| agent.as_ref().map(path));
    if found.host_name.is_some() {
        found.host_name = Some(name);
    }
    Ok(found)
}

fn tilde(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

fn read(
    file: &Path,
    host: &str,
    around: Surroundings<'_>,
    found: &mut HostConfig,
    depth: usize,
) -> Result<(), SshError> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|source| SshError::ReadFile {
            path: file.to_owned(),
            source,
        })?,
    };
    let mut applies = true;
    for (index, line) in text.lines().enumerate() {
        let bad = |why: &str| SshError::Config {
            path: file.to_owned(),
            line: index + 1,
            why: why.to_owned(),
        };
        let Some((key, words)) = words(line).map_err(bad)? else {
            continue;
        };
        match key.as_str() {
            "host" => applies = matches(&words, host),
            "match" => applies = words.len() == 1 && words[0].eq_ignore_ascii_case("all"),
            _ if !applies => {}
            "include" => {
                if depth >= INCLUDE_DEPTH {
                    return Err(bad("Include goes too deep"));
                }
                for pattern in &words {
                    for path in included(pattern, file, around.home) {
                        read(&path, host, around, found, depth + 1)?;
                    }
                }
            }
            _ => set(found, &key, &words).map_err(|why| bad(&why))?,
        }
    }
    Ok(())
}

/// One line as keyword and words: blanks or one `=` after the keyword, double quotes around words.
fn words(line: &str) -> Result<Option<(String, Vec<String>)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line
        .find(|c: char| c.is_whitespace() || c == '=')
        .unwrap_or(line.len());
    let (key, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let mut rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let mut words = Vec::new();
    while !rest.is_empty() && !rest.starts_with('#') {
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').ok_or("a double quote is not closed")?;
            words.push(quoted[..end].to_owned());
            rest = quoted[end + 1..].trim_start();
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            words.push(rest[..end].to_owned());
            rest = rest[end..].trim_start();
        }
    }
    if words.is_empty() {
        return Err("the keyword has no value");
    }
    Ok(Some((key.to_ascii_lowercase(), words)))
}

/// Whether a list of `Host` patterns is for this host: one must match, and none with `!` may.
fn matches(patterns: &[String], host: &str) -> bool {
    let mut one = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if wildcard(pattern, host) => return false,
            Some(_) => {}
            None => one |= wildcard(pattern, host),
        }
    }
    one
}

/// `*` and `?` of `ssh_config(5)`, without regard to case as host names are.
pub(super) fn wildcard(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (
        pattern.to_ascii_lowercase().into_bytes(),
        text.to_ascii_lowercase().into_bytes(),
    );
    // On a mismatch, the last `*` swallows one byte more.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, swallowed)) => {
                    star = Some((at, swallowed + 1));
                    p = at + 1;
                    t = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// Files of an `Include`: relative to `~/.ssh` (here: the including file's directory), wildcards in the last part.
fn included(pattern: &str, from: &Path, home: Option<&Path>) -> Vec<PathBuf> {
    let path = tilde(pattern, home);
    let path = if path.is_absolute() {
        path
    } else {
        from.parent().unwrap_or(Path::new("/")).join(path)
    };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().map(|name| name.to_string_lossy()))
    else {
        return Vec::new();
    };
    if !name.contains(['*', '?']) {
        return vec![path];
    }
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter(|entry| wildcard(&name, &entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

fn set(found: &mut HostConfig, key: &str, words: &[String]) -> Result<(), String> {
    let word = &words[0];
    let number = |what: &str| format!("{what} must be a number, not {word:?}");
    let first = |slot: &mut Option<String>| {
        slot.get_or_insert_with(|| word.clone());
    };
    match key {
        "hostname" => first(&mut found.host_name),
        "user" => first(&mut found.user),
        "hostkeyalias" => first(&mut found.host_key_alias),
        "stricthostkeychecking" => first(&mut found.strict),
        "proxycommand" if found.proxy_jump.is_none() && found.proxy_command.is_none() => {
            found.proxy_command = Some(words.join(" "));
        }
        "port" => {
            let port = word.parse().map_err(|_| number("Port"))?;
            found.port.get_or_insert(port);
        }
        "connecttimeout" => {
            let seconds = word.parse().map_err(|_| number("ConnectTimeout"))?;
            found.connect_timeout.get_or_insert(seconds);
        }
        "identityfile" if !word.eq_ignore_ascii_case("none") => found.identities.push(PathBuf::from(word)),
        "identitiesonly" => {
            found
                .identities_only
                .get_or_insert(word.eq_ignore_ascii_case("yes"));
        }
        "identityagent" => match word.as_str() {
            "none" => {
                found.identity_agent.get_or_insert(None);
            }
            // The caller's own agent is the default.
            "SSH_AUTH_SOCK" => {}
            path => {
                found.identity_agent.get_or_insert(Some(PathBuf::from(path)));
            }
        },
        "proxyjump" if found.proxy_command.is_none() => {
            let hops = if word.eq_ignore_ascii_case("none") {
                ""
            } else {
                word.as_str()
            };
            let hops = hops
                .split(',')
                .filter(|hop| !hop.is_empty())
                .map(str::to_owned)
                .collect();
            found.proxy_jump.get_or_insert(hops);
        }
        "userknownhostsfile" => {
            let files = words
                .iter()
                .filter(|word| !word.eq_ignore_ascii_case("none"))
                .map(PathBuf::from)
                .collect();
            found.known_hosts.get_or_insert(files);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str, host: &str) -> Result<HostConfig, SshError> {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("config");
        std::fs::File::create(&file)
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .expect("written");
        let around = Surroundings {
            home: Some(Path::new("/home/me")),
            local_user: Some("me"),
        };
        lookup(&[file], host, around)
    }

    #[test]
    fn the_first_value_counts_and_patterns_exclude() {
        let text = "
            Host web *.example.com !bad.example.com
                HostName = %h.internal
                User deploy
                IdentityFile ~/.ssh/%r-key
                IdentityFile \"/keys/with space\"
            Host *
                User other
                Port 2222
                ProxyJump me@jump:2200,second
        ";
        let web = config(text, "web").expect("reads");
        assert_eq!(web.host_name.as_deref(), Some("web.internal"));
        assert_eq!((web.user.as_deref(), web.port), (Some("deploy"), Some(2222)));
        assert_eq!(
            web.identities,
            [
                PathBuf::from("/home/me/.ssh/deploy-key"),
                PathBuf::from("/keys/with space")
            ]
        );
        assert_eq!(web.proxy_jump, Some(vec!["me@jump:2200".into(), "second".into()]));
        let bad = config(text, "bad.example.com").expect("reads");
        assert_eq!((bad.user.as_deref(), bad.host_name), (Some("other"), None));
        assert_eq!(
            config(text, "a.EXAMPLE.com").expect("reads").user.as_deref(),
            Some("deploy")
        );
    }

    #[test]
    fn match_blocks_that_cannot_be_decided_are_passed_over() {
        let found = config("Match exec \"true\"\n User wrong\nMatch all\n User right\n", "x").expect("reads");
        assert_eq!(found.user.as_deref(), Some("right"));
    }

    #[test]
    fn a_bad_value_names_file_and_line() {
        let error = config("Host x\n  Port many\n", "x").expect_err("refused");
        assert!(error.to_string().contains("config:2"), "{error}");
        assert!(
            config("Host x\n  Port many\n", "y").is_ok(),
            "other hosts are not concerned"
        );
    }

    #[test]
    fn wildcards() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("?", "", false),
            ("*.b.*", "a.b.c", true),
            ("**x", "x", true),
        ] {
            assert_eq!(wildcard(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn includes_are_followed_and_bounded() {
        let directory = tempfile::tempdir().expect("directory");
        let write = |name: &str, text: &str| {
            let mut file = std::fs::File::create(directory.path().join(name)).expect("created");
            std::io::Write::write_all(&mut file, text.as_bytes()).expect("written");
        };
        write("config", "Include conf-*\nHost x\n User late\n");
        write("conf-1", "Host x\n User early\n");
        write("loop", "Include loop\n");
        let around = Surroundings {
            home: None,
            local_user: None,
        };
        let found = lookup(&[directory.path().join("config")], "x", around).expect("reads");
        assert_eq!(found.user.as_deref(), Some("early"));
        assert!(lookup(&[directory.path().join("loop")], "x", around).is_err());
    }
}
