//! The smallest process around the library: `proxy-process <state directory> <control socket> <http address>`.
//!
//! With `SNAPSHOT` in its environment, it is run from that file.
//! With `SPOOL_BYTES` in its environment, the disk for bodies that are held back has only so many.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use appliance_proxy::Options;
use appliance_proxy::options::{Listener, ListenerSocket, Scheme, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, state, control, http] = &arguments[..] else {
        return Err("usage: proxy-process <state directory> <control socket> <http address>".into());
    };
    let socket = match listenfd::ListenFd::from_env().take_tcp_listener(0)? {
        Some(socket) => ListenerSocket::Inherited(socket),
        None => ListenerSocket::Bind(http.parse()?),
    };
    if let Ok(bytes) = std::env::var("SPOOL_BYTES") {
        small_disk(&std::path::Path::new(state).join("spool"), &bytes)?;
    }
    let again = arguments.clone();
    appliance_proxy::run(Options {
        listeners: vec![Listener {
            scheme: Scheme::Http,
            socket,
            proxy_protocol: false,
        }],
        metrics: None,
        access_log: None,
        control: Some(PathBuf::from(control)),
        store: match std::env::var_os("SNAPSHOT") {
            Some(file) => Store::File(PathBuf::from(file)),
            None => Store::Directory(PathBuf::from(state)),
        },
        spool: None,
        workers: Some(2),
        drain: Duration::from_secs(10),
        successor: Some(Box::new(move |handover| {
            Command::new(&again[0])
                .args(&again[1..])
                .env_remove("LISTEN_PID")
                .env("LISTEN_FDS", handover.schemes.len().to_string())
                .env("LISTEN_FDS_FIRST_FD", handover.first.to_string())
                .env("PREDECESSOR", std::process::id().to_string())
                .spawn()
        })),
        predecessor: std::env::var("PREDECESSOR").ok().and_then(|pid| pid.parse().ok()),
        notify: Box::new(|_| {}),
    })?;
    Ok(())
}

/// Mounts a file system of `bytes` in a name space of our own: a disk that really gets full.
fn small_disk(directory: &std::path::Path, bytes: &str) -> Result<(), Box<dyn std::error::Error>> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let user = if nix::unistd::geteuid().is_root() {
        CloneFlags::empty()
    } else {
        CloneFlags::CLONE_NEWUSER
    };
    unshare(CloneFlags::CLONE_NEWNS | user)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    std::fs::create_dir_all(directory)?;
    let size = format!("size={bytes}");
    mount(
        Some("tmpfs"),
        directory,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(size.as_str()),
    )?;
    Ok(())
}
