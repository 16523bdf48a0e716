//! The grammar of single values, Docker's own. An error says what was expected.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::spec::{self, DeviceRequest, Mount, Publish, Ulimit};

type Parsed<T> = Result<T, String>;

/// A device of the host, or one by driver.
pub(super) enum Device {
    Path(spec::Device),
    Requested(DeviceRequest),
}

pub(super) fn text(text: &str) -> Parsed<String> {
    if text.is_empty() || text.contains('\0') {
        Err("expected a text".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

pub(super) fn parsed<T: FromStr>(text: &str, what: &str) -> Parsed<T> {
    text.parse().map_err(|_| format!("expected {what}"))
}

pub(super) fn integer(text: &str, range: RangeInclusive<i64>) -> Parsed<i64> {
    let number: i64 = parsed(text, "a whole number")?;
    if range.contains(&number) {
        return Ok(number);
    }
    Err(match (*range.start(), *range.end()) {
        (from, i64::MAX) => format!("expected a whole number from {from}"),
        (from, to) => format!("expected a whole number from {from} to {to}"),
    })
}

pub(super) fn one_of(text: &str, choices: &[&str]) -> Parsed<String> {
    if choices.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("expected {}", choices.join(" or ")))
    }
}

/// One of the words, or `container:<name>`.
pub(super) fn namespace(text: &str, words: &[&str]) -> Parsed<String> {
    match text.strip_prefix("container:") {
        Some(name) if !name.is_empty() => Ok(text.to_owned()),
        _ => one_of(text, words).map_err(|expected| format!("{expected} or container:<name>")),
    }
}

/// `512m`, `1.5g`, `1gb`, `1GiB`, `1024`: units of 1024, as Docker reads them.
pub(super) fn bytes(text: &str) -> Parsed<i64> {
    let wrong = || "expected a size such as 512m or 1.5g (units b, k, m, g, t, p)".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let power = match unit.trim_start().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    let scale = 1024f64.powi(power);
    let whole: Option<i64> = number
        .parse::<i64>()
        .ok()
        .and_then(|n| n.checked_mul(1024i64.pow(power.unsigned_abs())));
    match whole {
        Some(bytes) => Ok(bytes),
        None if number.contains('.') => {
            let bytes = number.parse::<f64>().map_err(|_| wrong())? * scale;
            // 2^62: beyond any machine, and exact as a float.
            if bytes < 4.6e18 {
                Ok(bytes as i64)
            } else {
                Err(wrong())
            }
        }
        None => Err(wrong()),
    }
}

pub(super) fn bytes_or_unlimited(text: &str) -> Parsed<i64> {
    if text == "-1" { Ok(-1) } else { bytes(text) }
}

/// `1.5` processors, at most nine decimals.
pub(super) fn nano_cpus(text: &str) -> Parsed<i64> {
    let wrong = || "expected a number of processors such as 1.5".to_owned();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    if fraction.len() > 9 {
        return Err("expected at most nine decimals".to_owned());
    }
    let whole: i64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| wrong())?
    };
    let nanos: i64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|n| n.checked_add(nanos))
        .ok_or_else(wrong)
}

/// `30s`, `1m30s`, `1.5h`, `300ms`: Go's grammar. A number needs its unit, but for `0`.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let wrong = || "expected a time with its unit, such as 30s, 1m30s or 500ms".to_owned();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// `key=value`.
pub(super) fn pair(text: &str) -> Parsed<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected key=value".to_owned()),
    }
}

/// `key=value` or `key`.
pub(super) fn pair_or_key(text: &str) -> Parsed<(String, String)> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        Err("expected key=value".to_owned())
    } else {
        Ok((key.to_owned(), value.to_owned()))
    }
}

pub(super) fn env(text: &str) -> Parsed<(String, String)> {
    pair(text).map_err(|_| "expected KEY=VALUE; a bare name would take the value from the server".to_owned())
}

/// `0-3`, `0,2`.
pub(super) fn cpu_set(text: &str) -> Parsed<String> {
    let number = |part: &str| part.parse::<u16>().ok();
    let good = text.split(',').all(|part| match part.split_once('-') {
        Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
        None => number(part).is_some(),
    });
    if good {
        Ok(text.to_owned())
    } else {
        Err("expected numbers and ranges such as 0-2,4".to_owned())
    }
}

pub(super) fn weight(text: &str) -> Parsed<u16> {
    match parsed::<u16>(text, "a whole number")? {
        weight @ (0 | 10..=1000) => Ok(weight),
        _ => Err("expected 0 or a whole number from 10 to 1000".to_owned()),
    }
}

/// `/dev/path:rate`.
pub(super) fn device_rate<T>(text: &str, rate: impl Fn(&str) -> Parsed<T>) -> Parsed<(String, T)> {
    match text.rsplit_once(':') {
        Some((path, value)) if path.starts_with("/dev/") => Ok((path.to_owned(), rate(value)?)),
        _ => Err("expected /dev/<path>:<rate>".to_owned()),
    }
}

/// `nofile=1024:2048`.
pub(super) fn ulimit(text: &str) -> Parsed<Ulimit> {
    const NAMES: &[&str] = &[
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let wrong = || "expected <name>=<soft>[:<hard>], such as nofile=1024:2048".to_owned();
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    if !NAMES.contains(&name) {
        return Err(format!("expected one of the limits {}", NAMES.join(", ")));
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let soft: i64 = soft.parse().map_err(|_| wrong())?;
    let hard: i64 = hard.parse().map_err(|_| wrong())?;
    if hard != -1 && (soft > hard || soft == -1) {
        return Err("expected a soft limit that is not above the hard one".to_owned());
    }
    Ok(Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    })
}

/// `/dev/x`, `/dev/x:rw`, `/dev/x:/dev/y[:rwm]`, or `vendor.com/class=name` of the container device interface.
pub(super) fn device(text: &str) -> Parsed<Device> {
    let expected = "expected /dev/<path>[:<path inside>][:rwm] or <vendor>/<class>=<name>";
    if let Some((kind, _)) = text.split_once('=')
        && !text.starts_with('/')
        && kind.contains('/')
    {
        let ids = vec![text.to_owned()];
        return Ok(Device::Requested(DeviceRequest {
            driver: "cdi".to_owned(),
            ids,
            ..DeviceRequest::default()
        }));
    }
    let is_mode = |part: &str| !part.is_empty() && part.len() <= 3 && part.chars().all(|c| "rwm".contains(c));
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, permissions) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, mode] if is_mode(mode) => (host, host, mode),
        [host, container] => (host, container, "rwm"),
        [host, container, mode] if is_mode(mode) => (host, container, mode),
        _ => return Err(expected.to_owned()),
    };
    if !host.starts_with('/') || !container.starts_with('/') {
        return Err(expected.to_owned());
    }
    let permissions = permissions.to_owned();
    Ok(Device::Path(spec::Device {
        host: host.to_owned(),
        container: container.to_owned(),
        permissions,
    }))
}

/// `c 42:* rmw`.
pub(super) fn cgroup_rule(text: &str) -> Parsed<String> {
    let parts: Vec<&str> = text.split(' ').collect();
    let number = |part: &str| part == "*" || part.parse::<u32>().is_ok();
    let good = match parts[..] {
        [kind, numbers, mode] => {
            matches!(kind, "a" | "b" | "c")
                && numbers
                    .split_once(':')
                    .is_some_and(|(major, minor)| number(major) && number(minor))
                && (1..=3).contains(&mode.len())
                && mode.chars().all(|c| "rwm".contains(c))
        }
        _ => false,
    };
    if good {
        Ok(text.to_owned())
    } else {
        Err("expected a rule such as \"c 42:* rmw\"".to_owned())
    }
}

/// `all`, `2`, `device=0`, `"device=0,1"`, `driver=nvidia,count=1,capabilities=utility`.
pub(super) fn gpus(text: &str) -> Parsed<DeviceRequest> {
    let count = |text: &str| match text {
        "all" => Ok(-1),
        number => integer(number, 0..=1024).map_err(|_| "expected all or a number of GPUs".to_owned()),
    };
    let mut request = DeviceRequest::default();
    let fields = fields(text)?;
    for field in &fields {
        match field.split_once('=') {
            None if fields.len() == 1 => request.count = count(field)?,
            Some(("count", value)) => request.count = count(value)?,
            Some(("driver", value)) => request.driver = value.to_owned(),
            Some(("device", value)) => request.ids = value.split(',').map(str::to_owned).collect(),
            Some(("capabilities", value)) => {
                request.capabilities = value.split(',').map(str::to_owned).collect()
            }
            Some(("options", value)) => {
                request.options = value
                    .split(',')
                    .map(pair)
                    .collect::<Parsed<Vec<_>>>()?
                    .into_iter()
                    .collect();
            }
            _ => {
                return Err(
                    "expected all, a number, or count=, device=, driver=, capabilities=, options=".to_owned(),
                );
            }
        }
    }
    if !request.capabilities.iter().any(|capability| capability == "gpu") {
        request.capabilities.push("gpu".to_owned());
    }
    if request.count == 0 && request.ids.is_empty() {
        request.count = 1;
    }
    Ok(request)
}

/// What is not in a file.
pub(super) fn security(text: &str) -> Parsed<String> {
    match text.split_once('=') {
        None if text == "no-new-privileges" || text.starts_with("no-new-privileges:") => Ok(text.to_owned()),
        Some(("seccomp", "unconfined" | "builtin")) => Ok(text.to_owned()),
        Some(("seccomp", _)) => Err("expected seccomp=unconfined or seccomp=builtin, since a profile's file would have to be on the server".to_owned()),
        Some(("apparmor" | "label" | "no-new-privileges", value)) if !value.is_empty() => Ok(text.to_owned()),
        _ => Err("expected no-new-privileges, apparmor=, seccomp= or label=".to_owned()),
    }
}

/// `name:address` or `name=address`; `host-gateway` stands for the host.
pub(super) fn host(text: &str) -> Parsed<String> {
    let wrong = || "expected <name>:<IP address> or <name>:host-gateway".to_owned();
    let split = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) = split.filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
    let bare = address
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(address);
    if bare != "host-gateway" && bare.parse::<IpAddr>().is_err() {
        return Err(wrong());
    }
    Ok(format!("{name}:{bare}"))
}

pub(super) fn mac(text: &str) -> Parsed<String> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let good = parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok());
    if good {
        Ok(text.to_owned())
    } else {
        Err("expected six bytes such as 92:d0:c6:0a:29:33".to_owned())
    }
}

/// `[address:][host port:]container port[/protocol]`; both ports may be ranges of one length.
pub(super) fn publish(text: &str) -> Parsed<Vec<Publish>> {
    let wrong = || "expected [<address>:][<host port>:]<container port>[/tcp|udp|sctp]".to_owned();
    let (rest, protocol) = protocol(text).ok_or_else(wrong)?;
    let (head, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (address, host) = head.rsplit_once(':').unwrap_or(("", head));
    // An IPv6 address may come with its brackets or without.
    let bare = address
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(address);
    let host_ip = match bare {
        "" => None,
        bare => Some(bare.parse::<IpAddr>().map_err(|_| wrong())?),
    };
    let container = ports_of(container).ok_or_else(wrong)?;
    let host: Vec<Option<u16>> = match host {
        "" => vec![None; container.len()],
        host => ports_of(host).ok_or_else(wrong)?.into_iter().map(Some).collect(),
    };
    if host.len() != container.len() {
        return Err("expected as many ports on the host as in the container".to_owned());
    }
    Ok(host
        .into_iter()
        .zip(container)
        .map(|(host_port, container_port)| Publish {
            host_ip,
            host_port,
            container_port,
            protocol: protocol.clone(),
        })
        .collect())
}

/// `80`, `80/udp`, `80-90`.
pub(super) fn expose(text: &str) -> Parsed<Vec<String>> {
    let wrong = || "expected <port>[-<port>][/tcp|udp|sctp]".to_owned();
    let (ports, protocol) = protocol(text).ok_or_else(wrong)?;
    let ports = ports_of(ports).ok_or_else(wrong)?;
    Ok(ports
        .into_iter()
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

/// `[source:]target[:options]`, the target absolute.
pub(super) fn volume(text: &str) -> Parsed<String> {
    let wrong = || "expected [<source>:]</path inside>[:<options>]".to_owned();
    let parts: Vec<&str> = text.split(':').collect();
    let target = match parts[..] {
        [target] => target,
        [source, target] | [source, target, _] if !source.is_empty() => target,
        _ => return Err(wrong()),
    };
    if target.starts_with('/') && target != "/" {
        Ok(text.to_owned())
    } else {
        Err(wrong())
    }
}

/// `/path[:options]`.
pub(super) fn tmpfs(text: &str) -> Parsed<(String, String)> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    if path.starts_with('/') {
        Ok((path.to_owned(), options.to_owned()))
    } else {
        Err("expected </path inside>[:<options>]".to_owned())
    }
}

/// `type=bind,source=/a,target=/b,readonly`.
pub(super) fn mount(text: &str) -> Parsed<Mount> {
    let mut mount = Mount {
        kind: "volume".to_owned(),
        ..Mount::default()
    };
    for field in fields(text)? {
        let (key, value) = field.split_once('=').unwrap_or((field.as_str(), "true"));
        let value = || value.to_owned();
        match key {
            "type" => mount.kind = one_of(&value(), &["bind", "volume", "tmpfs", "image"])?,
            "source" | "src" => mount.source = Some(value()),
            "target" | "dst" | "destination" => mount.target = value(),
            "readonly" | "ro" => mount.read_only = parsed(&value(), "readonly=true or readonly=false")?,
            "bind-propagation" => {
                let kinds = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];
                mount.propagation = Some(one_of(&value(), &kinds)?);
            }
            "volume-nocopy" => mount.no_copy = parsed(&value(), "volume-nocopy=true or volume-nocopy=false")?,
            "volume-driver" => mount.volume_driver = Some(value()),
            "volume-opt" => mount.volume_options.extend([pair(&value())?]),
            "volume-label" => mount.volume_labels.extend([pair_or_key(&value())?]),
            "volume-subpath" => mount.volume_subpath = Some(value()),
            "tmpfs-size" => mount.tmpfs_size = Some(bytes(&value())?),
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(&value(), 8);
                mount.tmpfs_mode =
                    Some(mode.map_err(|_| "expected tmpfs-mode in octal, such as 1770".to_owned())?);
            }
            // It has had no effect since macOS stopped needing it.
            "consistency" => {}
            other => return Err(format!("expected a field of --mount, {other:?} is none")),
        }
    }
    if !mount.target.starts_with('/') {
        return Err("expected target=</path inside>".to_owned());
    }
    if matches!(mount.kind.as_str(), "bind" | "image") && mount.source.is_none() {
        return Err(format!("expected source= with type={}", mount.kind));
    }
    Ok(mount)
}

fn protocol(text: &str) -> Option<(&str, String)> {
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    matches!(protocol.as_str(), "tcp" | "udp" | "sctp").then_some((rest, protocol))
}

fn ports_of(text: &str) -> Option<Vec<u16>> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match text.split_once('-') {
        None => port(text).map(|port| vec![port]),
        Some((from, to)) => {
            let (from, to) = (port(from)?, port(to)?);
            (from <= to).then(|| (from..=to).collect())
        }
    }
}

/// One record of comma-separated values; a field in double quotes may hold commas, and a doubled quote stands for one.
fn fields(text: &str) -> Parsed<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut().expect("there is one at least");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    if quoted {
        Err("expected the closing quote".to_owned())
    } else {
        Ok(fields)
    }
}
