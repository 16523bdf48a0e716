//! Quantities and names of `x-appliance:` and `host.yml`, parsed once.
//!
//! Each has a `format` in the JSON Schema; the reader looks the check up by it, so that every mistake gets its own words.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Declares a newtype that is read from text (or a number) by `parse`, and written back as `write`.
macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal, $schema:tt, $write:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = Value::deserialize(deserializer)?;
                Self::parse(&value).map_err(serde::de::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let write: fn(&Self) -> Value = $write;
                write(self).serialize(serializer)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema = json_schema!($schema);
                schema.insert("format".to_owned(), $format.into());
                schema
            }
        }
    };
}

/// The check that belongs to a `format` of the schema.
pub(crate) fn check(format: &str, value: &Value) -> Result<(), String> {
    match format {
        "appliance-duration" => Seconds::parse(value).map(drop),
        "appliance-size" => Bytes::parse(value).map(drop),
        "appliance-share" => Share::parse(value).map(drop),
        "appliance-schedule" => Schedule::parse(value).map(drop),
        "appliance-location" => Location::parse(value).map(drop),
        "appliance-network" => Network::parse(value).map(drop),
        "appliance-ports" => Ports::parse(value).map(drop),
        "appliance-public-key" => PublicKey::parse(value).map(drop),
        _ => Ok(()),
    }
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "should be a string".to_owned())
}

unit!(
    /// A duration in whole seconds: `90`, `30s`, `5m`, `2h`, `7d`, `1w`. At most a year.
    Seconds(u64), "appliance-duration",
    {"type": ["string", "integer"], "description": "A duration: 90 (seconds), 30s, 5m, 2h, 7d", "examples": ["30s", "5m"]},
    |seconds| seconds.0.into()
);

impl Seconds {
    fn parse(value: &Value) -> Result<Self, String> {
        let wrong = || format!("{value} is not a duration: write seconds, or 30s, 5m, 2h, 7d");
        let seconds = match value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => {
                let text = text.trim();
                let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                let factor = match &text[digits.len()..] {
                    "" | "s" => 1,
                    "m" | "min" => 60,
                    "h" => 3600,
                    "d" => 86_400,
                    "w" => 604_800,
                    _ => return Err(wrong()),
                };
                digits
                    .parse::<u64>()
                    .ok()
                    .and_then(|count| count.checked_mul(factor))
            }
            _ => None,
        };
        match seconds {
            Some(seconds) if seconds <= 366 * 86_400 => Ok(Self(seconds)),
            Some(_) => Err(format!("{value} is longer than a year")),
            None => Err(wrong()),
        }
    }
}

unit!(
    /// A size in bytes: `512m`, `2g`, `10GiB`; units count in 1024s, as Docker's do.
    Bytes(u64), "appliance-size",
    {"type": ["string", "integer"], "description": "A size: 512m, 2g (1024-based, as Docker counts)", "examples": ["512m"]},
    |bytes| bytes.0.into()
);

impl Bytes {
    fn parse(value: &Value) -> Result<Self, String> {
        let wrong = || format!("{value} is not a size: write bytes, or 512k, 512m, 2g");
        let bytes = match value {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => {
                let text = text.trim().to_ascii_lowercase();
                let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                let unit = text[digits.len()..].trim_end_matches('b').trim_end_matches('i');
                let shift = match unit {
                    "" => 0,
                    "k" => 10,
                    "m" => 20,
                    "g" => 30,
                    "t" => 40,
                    _ => return Err(wrong()),
                };
                digits
                    .parse::<u64>()
                    .ok()
                    .and_then(|count| count.checked_mul(1 << shift))
            }
            _ => None,
        };
        bytes.map(Self).ok_or_else(wrong)
    }
}

unit!(
    /// A share between 0 and 1: `5%` or `0.05`.
    Share(f64), "appliance-share",
    {"type": ["string", "number"], "description": "A share: 5% or 0.05", "examples": ["5%"]},
    |share| share.0.into()
);

impl Share {
    fn parse(value: &Value) -> Result<Self, String> {
        let share = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => match text.trim().strip_suffix('%') {
                Some(percent) => percent.trim().parse::<f64>().ok().map(|percent| percent / 100.0),
                None => text.trim().parse().ok(),
            },
            _ => None,
        };
        match share {
            Some(share) if (0.0..=1.0).contains(&share) => Ok(Self(share)),
            _ => Err(format!("{value} is not a share: write 5% or 0.05, at most 100%")),
        }
    }
}

unit!(
    /// When something runs: five cron fields (`15 3 * * *`), or `hourly`, `daily`, `weekly`, `monthly`.
    Schedule(String), "appliance-schedule",
    {"type": "string", "description": "Five cron fields, or hourly, daily, weekly, monthly", "examples": ["15 3 * * *"]},
    |schedule| schedule.0.clone().into()
);

impl Schedule {
    /// The five fields: words are spelled out.
    pub fn fields(&self) -> &str {
        match self.0.trim_start_matches('@') {
            "hourly" => "0 * * * *",
            "daily" | "midnight" => "0 0 * * *",
            "weekly" => "0 0 * * 0",
            "monthly" => "0 0 1 * *",
            _ => &self.0,
        }
    }

    fn parse(value: &Value) -> Result<Self, String> {
        const FIELDS: [(&str, u32, u32, &[&str]); 5] = [
            ("minute", 0, 59, &[]),
            ("hour", 0, 23, &[]),
            ("day", 1, 31, &[]),
            (
                "month",
                1,
                12,
                &[
                    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
                ],
            ),
            (
                "weekday",
                0,
                7,
                &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
            ),
        ];
        let schedule = Self(text(value)?.trim().to_owned());
        let fields: Vec<&str> = schedule.fields().split_ascii_whitespace().collect();
        if fields.len() != FIELDS.len() {
            return Err(format!(
                "{value} is not a schedule: write five fields such as \"15 3 * * *\", or hourly, daily, weekly, monthly"
            ));
        }
        for (field, (name, low, high, words)) in fields.iter().zip(FIELDS) {
            let number = |part: &str| {
                let word = words.iter().position(|word| part.eq_ignore_ascii_case(word));
                match word {
                    Some(index) => u32::try_from(index).ok().map(|index| index + low),
                    None => part.parse().ok(),
                }
                .filter(|value| (low..=high).contains(value))
            };
            let valid = field.split(',').all(|item| {
                let (range, step) = item
                    .split_once('/')
                    .map_or((item, None), |(range, step)| (range, Some(step)));
                let step_ok = step.is_none_or(|step| step.parse::<u32>().is_ok_and(|step| step > 0));
                let range_ok = match range.split_once('-') {
                    _ if range == "*" => true,
                    Some((from, to)) => {
                        matches!((number(from), number(to)), (Some(from), Some(to)) if from <= to)
                    }
                    None => number(range).is_some(),
                };
                step_ok && range_ok
            });
            if !valid {
                return Err(format!(
                    "{field:?} is not a {name} of a schedule ({low}–{high}, lists, ranges, */n)"
                ));
            }
        }
        Ok(schedule)
    }
}

unit!(
    /// Where backups go: `s3://bucket/prefix` or `file:///absolute/path`.
    Location(String), "appliance-location",
    {"type": "string", "description": "s3://bucket/prefix or file:///absolute/path", "examples": ["s3://bucket/prefix"]},
    |location| location.0.clone().into()
);

impl Location {
    fn parse(value: &Value) -> Result<Self, String> {
        let location = text(value)?;
        let valid = match location.split_once("://") {
            Some(("s3", rest)) => {
                let bucket = rest.split('/').next().unwrap_or_default();
                (3..=63).contains(&bucket.len())
                    && bucket
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c))
            }
            Some(("file", path)) => {
                path.starts_with('/') && path.len() > 1 && !path.split('/').any(|part| part == "..")
            }
            _ => false,
        };
        if valid {
            Ok(Self(location.to_owned()))
        } else {
            Err(format!(
                "{value} is not a place for backups: write s3://bucket/prefix or file:///absolute/path"
            ))
        }
    }
}

/// A network in CIDR form, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

unit!(
    /// A network: `10.0.5.0/24`, `2001:db8::/32`, or one address.
    Network(Cidr), "appliance-network",
    {"type": "string", "description": "A network such as 10.0.5.0/24, or one address", "examples": ["10.0.5.0/24"]},
    |network| network.0.to_string().into()
);

impl Network {
    fn parse(value: &Value) -> Result<Self, String> {
        let text = text(value)?;
        let (address, prefix) = text
            .split_once('/')
            .map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| {
            format!("{value} is not a network: write 10.0.5.0/24, 2001:db8::/32, or one address")
        })?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => widest,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= widest)
                .ok_or_else(|| format!("/{prefix} is not a prefix length; at most /{widest} here"))?,
        };
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let host_bits = u32::from(widest - prefix);
        let host = bits & 1u128.checked_shl(host_bits).map_or(u128::MAX, |bit| bit - 1);
        if host != 0 {
            return Err(format!(
                "{value} has bits beyond its prefix; did you mean one address, or a longer prefix?"
            ));
        }
        Ok(Self(Cidr { address, prefix }))
    }
}

/// Ports of one protocol, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

unit!(
    /// Ports: `8080`, `5432/tcp`, `6000-6010/udp`; TCP unless said.
    Ports(PortRange), "appliance-ports",
    {"type": ["string", "integer"], "description": "A port or range: 8080, 5432/tcp, 6000-6010/udp", "examples": ["5432/tcp"]},
    |ports| {
        let PortRange { first, last, udp } = ports.0;
        let protocol = if udp { "udp" } else { "tcp" };
        match first == last {
            true => format!("{first}/{protocol}").into(),
            false => format!("{first}-{last}/{protocol}").into(),
        }
    }
);

impl Ports {
    fn parse(value: &Value) -> Result<Self, String> {
        let wrong = || format!("{value} is not a port: write 8080, 5432/tcp or 6000-6010/udp");
        let text = match value {
            Value::Number(number) => number.to_string(),
            _ => text(value)?.to_owned(),
        };
        let (ports, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
        let udp = match protocol {
            "tcp" => false,
            "udp" => true,
            _ => return Err(wrong()),
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(PortRange { first, last, udp })),
            _ => Err(wrong()),
        }
    }
}

unit!(
    /// A public key as one line of `authorized_keys`, without options.
    PublicKey(String), "appliance-public-key",
    {"type": "string", "description": "One line of an OpenSSH public key file", "examples": ["ssh-ed25519 AAAA… ann@laptop"]},
    |key| key.0.clone().into()
);

impl PublicKey {
    fn parse(value: &Value) -> Result<Self, String> {
        use base64::Engine as _;
        const KINDS: &[&str] = &[
            "ssh-ed25519",
            "ssh-rsa",
            "ecdsa-sha2-nistp256",
            "ecdsa-sha2-nistp384",
            "ecdsa-sha2-nistp521",
            "sk-ssh-ed25519@openssh.com",
            "sk-ecdsa-sha2-nistp256@openssh.com",
        ];
        let line = text(value)?.trim();
        if line.contains("PRIVATE KEY") {
            return Err("this is a private key; give the public one, the file that ends in .pub".to_owned());
        }
        let mut words = line.split_ascii_whitespace();
        let (kind, blob) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !KINDS.contains(&kind) || line.contains('\n') {
            return Err("this is not a public key: it is one line that begins with ssh-ed25519, ecdsa-sha2-…, sk-… or ssh-rsa".to_owned());
        }
        // The blob names its kind again, after a length of four bytes.
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(blob)
            .unwrap_or_default();
        let named = bytes.get(4..4 + kind.len());
        if named != Some(kind.as_bytes()) {
            return Err(format!("this {kind} key is damaged or cut off"));
        }
        Ok(Self(line.to_owned()))
    }
}

/// Command words: a list, or one line that is split as a shell would; a line that needs a shell is given to `sh -c`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum CommandLine {
    /// One line.
    Line(String),
    /// Words.
    Words(Vec<String>),
}

impl CommandLine {
    /// The argument vector.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Words(words) => words.clone(),
            Self::Line(line) => {
                let shell = || vec!["sh".to_owned(), "-c".to_owned(), line.clone()];
                if line.contains(|c| "|&;<>()$`*?[]#~\n".contains(c)) {
                    return shell();
                }
                crate::secrets::shell::split(line).unwrap_or_else(|_| shell())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_the_forms_people_write() {
        for (format, valid, invalid) in [
            (
                "appliance-duration",
                r#"[90, "30s", "5m", "2h", "7d", "1w", "5min", 0]"#,
                r#"["5 parsecs", -1, "m", 1.5, "400d", true]"#,
            ),
            (
                "appliance-size",
                r#"[1, "512m", "2g", "10GiB", "5MB", "1k"]"#,
                r#"["big", -1, "5x", "m"]"#,
            ),
            (
                "appliance-share",
                r#"["5%", 0.05, "0.5", 1, "100 %"]"#,
                r#"["101%", 5, "x", -0.1]"#,
            ),
            (
                "appliance-schedule",
                r#"["15 3 * * *", "*/5 0-6,22 1 jan-mar mon", "daily", "@weekly"]"#,
                r#"["60 * * * *", "* * *", "fortnightly", "* * * * 8", "5-3 * * * *", "*/0 * * * *"]"#,
            ),
            (
                "appliance-location",
                r#"["s3://my-bucket/a/b", "file:///var/backups"]"#,
                r#"["/var/backups", "s3://X", "file://rel", "file:///a/../b", "http://x"]"#,
            ),
            (
                "appliance-network",
                r#"["10.0.5.0/24", "192.0.2.1", "2001:db8::/32", "0.0.0.0/0"]"#,
                r#"["10.0.5.1/24", "x", "10.0.0.0/33", "::1/64"]"#,
            ),
            (
                "appliance-ports",
                r#"[80, "5432/tcp", "6000-6010/udp"]"#,
                r#"[0, 70000, "5432/icmp", "9-1", "http"]"#,
            ),
            (
                "appliance-public-key",
                r#"["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ann"]"#,
                r#"["ssh-ed25519 AAAA", "ssh-dss AAAA", "-----BEGIN OPENSSH PRIVATE KEY-----"]"#,
            ),
        ] {
            let list = |json: &str| serde_json::from_str::<Vec<Value>>(json).expect("JSON");
            for value in list(valid) {
                assert_eq!(check(format, &value), Ok(()), "{format} {value}");
            }
            for value in list(invalid) {
                assert!(check(format, &value).is_err(), "{format} {value}");
            }
        }
    }

    #[test]
    fn a_command_line_goes_to_a_shell_only_when_it_needs_one() {
        for (line, words) in [
            ("bin/rails db:migrate", vec!["bin/rails", "db:migrate"]),
            ("echo 'a b' c", vec!["echo", "a b", "c"]),
            ("a && b", vec!["sh", "-c", "a && b"]),
        ] {
            assert_eq!(CommandLine::Line(line.to_owned()).words(), words);
        }
    }
}
