//! `cargo xtask bench proxy`: nginx, HAProxy and ours, side by side.
//!
//! All three stand before the same upstream (nginx serving a file), are driven by the same load generators (`wrk`,
//! `h2load`) on the same cores, in interleaved rounds; the medians are shown.
//! Everything runs on the loopback in a temporary directory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{cargo, prerequisites, say};

/// What the comparison needs beside the usual.
const PACKAGES: &[(&str, &str)] = &[
    ("nginx", "nginx"),
    ("haproxy", "haproxy"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("openssl", "openssl"),
    ("curl", "curl"),
];

/// Size of the large download.
const LARGE: u64 = 1 << 30;

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Seconds for each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Rounds; the medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Idle connections to hold
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Take this binary instead of building the release
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Write the table to this file as well
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// One of the proxies that are compared.
struct Contender {
    name: &'static str,
    child: Child,
    http: SocketAddr,
    https: SocketAddr,
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    per_second: f64,
    cpu_us: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Http,
    Https1,
    Https2,
    Handshakes,
    Resumptions,
    Download,
}

impl Row {
    const ALL: [Self; 6] = [
        Self::Http,
        Self::Https1,
        Self::Https2,
        Self::Handshakes,
        Self::Resumptions,
        Self::Download,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP/1.1, 4 KiB, 64 connections",
            Self::Https1 => "HTTPS/1.1, 4 KiB, 64 connections",
            Self::Https2 => "HTTPS/2, 4 KiB, 64 connections",
            Self::Handshakes => "new TLS 1.3 connections, full handshake, one request each",
            Self::Resumptions => "new TLS 1.3 connections, resumed, one request each",
            Self::Download => "1 GiB download, HTTP/1.1 (MiB/s, CPU µs per MiB)",
        }
    }
}

/// Runs the comparison.
pub(crate) async fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    prerequisites::install(PACKAGES)?;
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => cargo::binary(true)?,
    };
    // HAProxy reserves two descriptors for each connection that it may hold.
    let most = (allow_many_files()? - 100) / 2;
    let idle = args.idle.min(usize::try_from(most)? - 100);
    let home = tempfile::tempdir()?;
    let upstream = upstream(home.path())?;
    certificate(home.path())?;
    let contenders = [
        nginx(home.path(), upstream.http)?,
        haproxy(home.path(), upstream.http, most)?,
        ours(home.path(), upstream.http, &binary)?,
    ];
    for contender in &contenders {
        for address in [contender.http, contender.https] {
            wait_for(address).with_context(|| {
                let log = home.path().join(format!("{}.log", contender.name));
                let said = fs_err::read_to_string(log).unwrap_or_default();
                format!("{} does not start: {said}", contender.name)
            })?;
        }
    }
    let mut fresh = BTreeMap::new();
    for contender in &contenders {
        fresh.insert(contender.name, memory(contender.child.id())?);
    }
    let mut samples: BTreeMap<(Row, &str), Vec<Sample>> = BTreeMap::new();
    for round in 1..=args.rounds {
        for row in Row::ALL {
            for contender in &contenders {
                let sample = measure(row, contender, args.seconds, home.path())?;
                say::note(&format!(
                    "round {round}, {}, {}: {:.0}/s, {:.1} µs CPU, p99 {:.2} ms, {} errors",
                    row.title(),
                    contender.name,
                    sample.per_second,
                    sample.cpu_us,
                    sample.p99_ms,
                    sample.errors
                ));
                samples.entry((row, contender.name)).or_default().push(sample);
            }
        }
    }
    let mut used = Vec::new();
    for contender in &contenders {
        let before = memory(contender.child.id())?;
        let after = hold_idle(contender, idle).await?;
        used.push((contender.name, [fresh[contender.name], before, after]));
    }
    let table = table(&samples, &used, args, idle)?;
    say::line(&table);
    if let Some(path) = &args.record {
        fs_err::write(path, &table)?;
        say::note(&format!("recorded in {}", path.display()));
    }
    Ok(())
}

/// Raises the limit of open files as far as we may; what we start inherits it.
fn allow_many_files() -> anyhow::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")?;
    Ok(most.min(100_000))
}

fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn start(command: &mut Command, log: &Path) -> anyhow::Result<Child> {
    let log = fs_err::File::create(log)?.into_parts().0;
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run {shown}"))
}

fn wait_for(address: SocketAddr) -> anyhow::Result<()> {
    let begun = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        if begun.elapsed() > Duration::from_secs(10) {
            bail!("nothing listens on {address} after 10 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The files to serve, and an nginx that serves them.
fn upstream(home: &Path) -> anyhow::Result<Contender> {
    fs_err::write(home.join("small"), vec![b'x'; 4096])?;
    fs_err::File::create(home.join("large"))?.set_len(LARGE)?;
    let address = free_port()?;
    let root = home.display();
    let text = format!(
        "daemon off; worker_processes 1; pid {root}/upstream.pid; error_log {root}/upstream.err;\n\
         worker_rlimit_nofile 65536; events {{ worker_connections 20000; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 1000000000; open_file_cache max=10;\n\
         server {{ listen {address} backlog=4096; root {root}; }} }}\n"
    );
    let child = run_nginx(home, "upstream", &text)?;
    wait_for(address)?;
    Ok(Contender {
        name: "upstream",
        child,
        http: address,
        https: address,
    })
}

fn run_nginx(home: &Path, name: &str, text: &str) -> anyhow::Result<Child> {
    let path = home.join(format!("{name}.conf"));
    // Its workers run as nobody when we are root.
    let user = if nix::unistd::geteuid().is_root() {
        "user root;\n"
    } else {
        ""
    };
    fs_err::write(&path, format!("{user}{text}"))?;
    start(
        Command::new("nginx").arg("-p").arg(home).arg("-c").arg(&path),
        &home.join(format!("{name}.log")),
    )
}

fn certificate(home: &Path) -> anyhow::Result<()> {
    prerequisites::run(
        Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ])
            .args([
                "-days",
                "2",
                "-subj",
                "/CN=bench.test",
                "-addext",
                "subjectAltName=DNS:bench.test",
            ])
            .arg("-keyout")
            .arg(home.join("key.pem"))
            .arg("-out")
            .arg(home.join("cert.pem"))
            .stderr(Stdio::null()),
    )?;
    let both = [
        fs_err::read(home.join("cert.pem"))?,
        fs_err::read(home.join("key.pem"))?,
    ]
    .concat();
    Ok(fs_err::write(home.join("both.pem"), both)?)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn nginx(home: &Path, upstream: SocketAddr) -> anyhow::Result<Contender> {
    let (http, https) = (free_port()?, free_port()?);
    let (root, cores) = (home.display(), cores());
    let text = format!(
        "daemon off; worker_processes {cores}; pid {root}/nginx.pid; error_log {root}/nginx.err;\n\
         worker_rlimit_nofile 65536; events {{ worker_connections 20000; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 75;\n\
         upstream app {{ server {upstream}; keepalive 128; keepalive_requests 1000000000; }}\n\
         server {{ listen {http} reuseport backlog=4096; listen {https} ssl http2 reuseport backlog=4096;\n\
         ssl_certificate {root}/cert.pem; ssl_certificate_key {root}/key.pem; ssl_session_tickets on;\n\
         ssl_protocols TLSv1.2 TLSv1.3;\n\
         location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-ID $request_id;\n\
         proxy_max_temp_file_size 0; }} }} }}\n"
    );
    Ok(Contender {
        name: "nginx",
        child: run_nginx(home, "nginx", &text)?,
        http,
        https,
    })
}

fn haproxy(home: &Path, upstream: SocketAddr, most: u64) -> anyhow::Result<Contender> {
    let (http, https) = (free_port()?, free_port()?);
    let (root, cores) = (home.display(), cores());
    let text = format!(
        "global\n  nbthread {cores}\n  maxconn {most}\n\
         defaults\n  mode http\n  timeout client 75s\n  timeout server 30s\n  timeout connect 5s\n  option forwardfor\n  http-reuse always\n\
         frontend all\n  bind {http} backlog 4096\n  bind {https} ssl crt {root}/both.pem alpn h2,http/1.1 backlog 4096\n\
         \x20 http-request set-header X-Forwarded-Proto http\n  unique-id-format %{{+X}}o%pid-%rt\n  unique-id-header X-Request-ID\n\
         \x20 default_backend app\n\
         backend app\n  server one {upstream}\n"
    );
    let path = home.join("haproxy.cfg");
    fs_err::write(&path, text)?;
    let child = start(
        Command::new("haproxy").arg("-db").arg("-f").arg(&path),
        &home.join("HAProxy.log"),
    )?;
    Ok(Contender {
        name: "HAProxy",
        child,
        http,
        https,
    })
}

fn ours(home: &Path, upstream: SocketAddr, binary: &Path) -> anyhow::Result<Contender> {
    let (http, https) = (free_port()?, free_port()?);
    let snapshot = serde_json::json!({
        "format": 1,
        "services": [{
            "name": "bench",
            "tls": { "redirect": false, "certificate": { "files": {
                "chain": home.join("cert.pem"), "key": home.join("key.pem"),
            } } },
            "upstreams": [upstream.to_string()],
            "health_check": { "path": "/small" },
        }],
    });
    let path = home.join("snapshot.json");
    fs_err::write(&path, serde_json::to_vec_pretty(&snapshot)?)?;
    let child = start(
        Command::new(binary)
            .arg("proxy")
            .args(["--http", &http.to_string(), "--https", &https.to_string()])
            .args(["--workers", &cores().to_string()])
            // As its unit does.
            .env("MIMALLOC_ALLOW_THP", "0")
            .arg("--snapshot")
            .arg(&path),
        &home.join("appliance.log"),
    )?;
    Ok(Contender {
        name: "appliance",
        child,
        http,
        https,
    })
}

/// A process and its children.
fn family(pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut family = vec![pid];
    for entry in fs_err::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(other) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may end while we look.
        let Some(fields) = stat(other) else { continue };
        if fields.get(1).and_then(|parent| parent.parse().ok()) == Some(pid) {
            family.push(other);
        }
    }
    Ok(family)
}

/// The fields of `/proc/<pid>/stat` from the state on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split(' ').map(str::to_owned).collect())
}

/// Processor time of a process and its children.
fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut ticks = 0;
    for member in family(pid)? {
        let fields = stat(member).context("a proxy has ended")?;
        ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    // Linux counts in hundredths of a second for user space, whatever its own clock.
    Ok(Duration::from_millis(ticks * 10))
}

/// Memory of a process and its children, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    /// What nobody else could use: heap, stacks, changed pages.
    own: u64,
    /// That, and the pages of files that are mapped, each shared one in parts (PSS).
    all: u64,
}

fn memory(pid: u32) -> anyhow::Result<Memory> {
    let mut memory = Memory::default();
    for member in family(pid)? {
        let text = fs_err::read_to_string(format!("/proc/{member}/smaps_rollup"))?;
        let of = |name: &str| -> anyhow::Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            Ok(word
                .with_context(|| format!("the kernel does not tell {name}"))?
                .parse::<u64>()?
                << 10)
        };
        memory.own += of("Pss_Anon:")?;
        memory.all += of("Pss:")?;
    }
    Ok(memory)
}

fn measure(row: Row, contender: &Contender, seconds: u32, home: &Path) -> anyhow::Result<Sample> {
    let pid = contender.child.id();
    let small = |scheme: &str, address: SocketAddr| format!("{scheme}://{address}/small");
    let before = cpu(pid)?;
    let begun = Instant::now();
    let (mut sample, count) = match row {
        Row::Http => wrk(&small("http", contender.http), seconds, &[])?,
        Row::Https1 => wrk(&small("https", contender.https), seconds, &[])?,
        Row::Handshakes => s_time(contender.https, seconds)?,
        // wrk keeps the session of each of its connections, and resumes it.
        Row::Resumptions => wrk(
            &small("https", contender.https),
            seconds,
            &["-H", "Connection: close"],
        )?,
        Row::Https2 => h2load(&small("https", contender.https), seconds, home)?,
        Row::Download => {
            prerequisites::run(
                Command::new("curl")
                    .args(["--silent", "--show-error", "--fail", "--output", "/dev/null"])
                    .arg(format!("http://{}/large", contender.http)),
            )?;
            (Sample::default(), LARGE >> 20)
        }
    };
    #[allow(clippy::cast_precision_loss)]
    let count = count.max(1) as f64;
    if row == Row::Download {
        sample.per_second = count / begun.elapsed().as_secs_f64();
    }
    sample.cpu_us = (cpu(pid)? - before).as_secs_f64() * 1e6 / count;
    Ok(sample)
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn wrk(url: &str, seconds: u32, more: &[&str]) -> anyhow::Result<(Sample, u64)> {
    let text = output(
        Command::new("wrk")
            .args(["-t1", "-c64", "--latency", &format!("-d{seconds}")])
            .args(more)
            .arg(url),
    )?;
    let word = |start: &str, index: usize| {
        text.lines()
            .find(|line| line.trim_start().starts_with(start))
            .and_then(|line| line.split_whitespace().nth(index))
            .unwrap_or_default()
            .to_owned()
    };
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())
        .with_context(|| format!("wrk says nothing of requests: {text}"))?;
    // "Socket errors: connect 0, read 0, write 0, timeout 0" and "Non-2xx or 3xx responses: 0".
    let errors = text
        .lines()
        .filter(|line| line.contains("errors:") || line.contains("Non-2xx"))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_digit()))
        .filter_map(|number| number.parse::<u64>().ok())
        .sum::<u64>();
    let sample = Sample {
        per_second: word("Requests/sec:", 1).parse().unwrap_or_default(),
        cpu_us: 0.0,
        p50_ms: milliseconds(&word("50%", 1)),
        p99_ms: milliseconds(&word("99%", 1)),
        errors,
    };
    Ok((sample, requests))
}

/// Clients that each open one connection after the other, without a session to resume; they tell no latencies.
fn s_time(address: SocketAddr, seconds: u32) -> anyhow::Result<(Sample, u64)> {
    const CLIENTS: usize = 16;
    let seconds = seconds.to_string();
    let clients = (0..CLIENTS)
        .map(|_| {
            Command::new("openssl")
                .args(["s_time", "-new", "-tls1_3", "-www", "/small", "-time", &seconds])
                .args(["-connect", &address.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("cannot run openssl s_time")
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let begun = Instant::now();
    let (mut count, mut errors) = (0, 0);
    for client in clients {
        let output = client.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        count += connections(&text).with_context(|| {
            let why = String::from_utf8_lossy(&output.stderr);
            format!("openssl s_time says nothing of connections: {text}{why}")
        })?;
        errors += u64::from(!output.status.success());
    }
    #[allow(clippy::cast_precision_loss)]
    let sample = Sample {
        per_second: count as f64 / begun.elapsed().as_secs_f64(),
        errors,
        ..Sample::default()
    };
    Ok((sample, count))
}

/// How many connections `openssl s_time` made, by its line `629 connections in 3 real seconds, …`.
fn connections(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| {
            line.split_once(" connections in ")
                .filter(|(_, rest)| rest.contains(" real "))
        })
        .and_then(|(count, _)| count.trim().parse().ok())
}

/// `4.50ms`, `812.00us` or `1.20s`.
fn milliseconds(text: &str) -> f64 {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return number.parse::<f64>().unwrap_or_default() * factor;
        }
    }
    0.0
}

fn h2load(url: &str, seconds: u32, home: &Path) -> anyhow::Result<(Sample, u64)> {
    let log = home.join("h2load.log");
    if log.exists() {
        fs_err::remove_file(&log)?;
    }
    output(
        Command::new("h2load")
            .args(["-t1", "-c64", "-m1", &format!("-D{seconds}")])
            .arg(format!("--log-file={}", log.display()))
            .arg(url),
    )?;
    let (mut micros, mut errors) = (Vec::new(), 0);
    for line in fs_err::read_to_string(&log)?.lines() {
        let mut fields = line.split('\t').skip(1);
        let (status, time) = (
            fields.next().unwrap_or_default(),
            fields.next().unwrap_or_default(),
        );
        errors += u64::from(status != "200");
        micros.push(time.parse::<u64>().unwrap_or_default());
    }
    micros.sort_unstable();
    #[allow(clippy::cast_precision_loss)]
    let at = |share: usize| {
        micros
            .get(micros.len() * share / 100)
            .map_or(0.0, |us| *us as f64 / 1000.0)
    };
    let count = micros.len() as u64;
    #[allow(clippy::cast_precision_loss)]
    let sample = Sample {
        per_second: count as f64 / f64::from(seconds),
        cpu_us: 0.0,
        p50_ms: at(50),
        p99_ms: at(99),
        errors,
    };
    Ok((sample, count))
}

/// Opens connections that each make one request and then rest; the proxy's memory while they do.
async fn hold_idle(contender: &Contender, count: usize) -> anyhow::Result<Memory> {
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = tokio::net::TcpStream::connect(contender.http).await?;
        stream
            .write_all(b"GET /small HTTP/1.1\r\nHost: bench.test\r\n\r\n")
            .await?;
        let mut answer = Vec::with_capacity(8192);
        while !answer.ends_with(b"xxxx") || answer.len() < 4096 {
            if stream.read_buf(&mut answer).await? == 0 {
                bail!("{} closed an idle connection", contender.name);
            }
        }
        open.push(stream);
    }
    memory(contender.child.id())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Milliseconds, where the load generator tells them.
fn latency(ms: f64) -> String {
    if ms > 0.0 {
        format!("{ms:.2}")
    } else {
        "–".into()
    }
}

/// The result, in Markdown.
fn table(
    samples: &BTreeMap<(Row, &str), Vec<Sample>>,
    memory: &[(&str, [Memory; 3])],
    args: &BenchArgs,
    idle: usize,
) -> anyhow::Result<String> {
    let mut text = format!("# Proxy benchmark\n\n{}\n\n", machine()?);
    writeln!(
        text,
        "Medians of {} rounds of {} s, interleaved; upstream, load generator and proxy share the cores.\n\
         TLS 1.3 throughout; full handshakes are made by `openssl s_time`.\n",
        args.rounds, args.seconds
    )?;
    for row in Row::ALL {
        writeln!(text, "## {}\n", row.title())?;
        writeln!(
            text,
            "| | per second | ratio to nginx | CPU µs each | ratio | p50 ms | p99 ms | errors |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|---|---|")?;
        let of = |name: &str, pick: fn(&Sample) -> f64| {
            let all = samples.iter().filter(|((r, n), _)| *r == row && *n == name);
            median(all.flat_map(|(_, samples)| samples.iter().map(pick)).collect())
        };
        for (name, _) in memory {
            let (rate, cpu) = (of(name, |s| s.per_second), of(name, |s| s.cpu_us));
            let errors: u64 = samples
                .iter()
                .filter(|((r, n), _)| *r == row && n == name)
                .flat_map(|(_, samples)| samples.iter().map(|s| s.errors))
                .sum();
            writeln!(
                text,
                "| {name} | {rate:.0} | {:.2} | {cpu:.1} | {:.2} | {} | {} | {errors} |",
                rate / of("nginx", |s| s.per_second),
                cpu / of("nginx", |s| s.cpu_us),
                latency(of(name, |s| s.p50_ms)),
                latency(of(name, |s| s.p99_ms)),
            )?;
        }
        text.push('\n');
    }
    writeln!(
        text,
        "## Memory\n\n\
         Own memory (heap, stacks, changed pages) and, in brackets, with the mapped files' pages.\n\
         How many of those there are is also the kernel's choice: it maps what lies around a page that is used, \
         and more of it where the page cache holds the file in large pieces.\n\n\
         | | at the start, MiB | after the load, MiB | with {idle} idle connections, MiB | bytes each |\n\
         |---|---|---|---|---|"
    )?;
    for (name, [fresh, before, after]) in memory {
        #[allow(clippy::cast_precision_loss)]
        let mib = |memory: &Memory| {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            format!("{:.1} ({:.1})", mib(memory.own), mib(memory.all))
        };
        let each = after.own.saturating_sub(before.own) / idle.max(1) as u64;
        writeln!(
            text,
            "| {name} | {} | {} | {} | {each} |",
            mib(fresh),
            mib(before),
            mib(after)
        )?;
    }
    text.push_str(
        "\nkamal-proxy is in no distribution and not measured here. \
         Beside nginx on another machine it took 4.8, 4.0 and 4.9 times nginx's CPU for the first three rows, \
         and answered 0.22, 0.33 and 0.28 times as many requests.\n",
    );
    Ok(text)
}

/// The machine and the versions, on one line each.
fn machine() -> anyhow::Result<String> {
    let info = fs_err::read_to_string("/proc/cpuinfo")?;
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| {
            rest.trim_start_matches(['\t', ' ', ':'])
        });
    let first = |command: &mut Command| -> String {
        let output = command.output();
        let text = output.map_or(Vec::new(), |output| [output.stdout, output.stderr].concat());
        String::from_utf8_lossy(&text)
            .lines()
            .next()
            .unwrap_or("unknown version")
            .to_owned()
    };
    Ok(format!(
        "- {} × {model}\n- {}\n- {}",
        cores(),
        first(Command::new("nginx").arg("-v")),
        first(Command::new("haproxy").arg("-v"))
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn connections_of_s_time_are_counted_once() {
        let text = "629 connections in 0.38s; 1655.26 connections/user sec, bytes read 2724828\n\
                    629 connections in 3 real seconds, 4332 bytes read per connection\n";
        assert_eq!(super::connections(text), Some(629));
        assert_eq!(super::connections("nothing"), None);
    }

    #[test]
    fn times_of_wrk_are_read_in_every_unit() {
        for (text, expect) in [("4.50ms", 4.5), ("812.00us", 0.812), ("1.20s", 1200.0), ("", 0.0)] {
            assert!((super::milliseconds(text) - expect).abs() < 1e-9, "{text}");
        }
    }
}
