//! What can be built, and how each is made from the others.

use std::fmt;

use aws_lc_rs::digest;

use crate::apt::Apt;
use crate::definition::{DATA, DEMO, Definition, HOST, KAMAL_PROXY, OUTSIDE, POSTGRES, PYTHON, ROOTFS_SH};

/// A Debian release that hosts and databases come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distro {
    /// Bookworm: systemd 252, Docker 20.10, PostgreSQL 15.
    Debian12,
    /// Trixie: systemd 257, Docker 26.1, PostgreSQL 17.
    Debian13,
}

impl Distro {
    /// All of them, oldest first.
    pub const ALL: [Self; 2] = [Self::Debian12, Self::Debian13];

    /// The suite's code name.
    #[must_use]
    pub fn suite(self) -> &'static str {
        match self {
            Self::Debian12 => "bookworm",
            Self::Debian13 => "trixie",
        }
    }

    /// The name people give it: `debian12`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "debian12",
            Self::Debian13 => "debian13",
        }
    }

    /// The distribution with this name or code name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|distro| text == distro.name() || text == distro.suite())
    }

    pub(crate) fn systemd_version(self) -> u32 {
        match self {
            Self::Debian12 => 252,
            Self::Debian13 => 257,
        }
    }
}

impl fmt::Display for Distro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An image of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A bare host: systemd, sshd, nftables; Docker downloaded, not installed.
    Host(Distro),
    /// Debian and Python, the base of the two below.
    Python,
    /// The demo app; two versions differ by one line in one small layer.
    Demo {
        /// What the app shows as its version.
        version: String,
    },
    /// A machine elsewhere on the network, from which ports are probed.
    Outside,
    /// A stand-in for kamal-proxy, for tests of adoption.
    KamalProxy,
    /// PostgreSQL, behaving like the official image.
    Postgres(Distro),
    /// Redis, MariaDB and SQLite, each started by its own command.
    Data,
}

/// A built image, by the name Docker knows it by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef(pub(crate) String);

impl ImageRef {
    /// The reference, as in `appliance-host-debian12:0f3a…`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How an image is made.
#[derive(Debug)]
pub(crate) enum Recipe {
    /// One layer, from packages.
    Rootfs { definition: Definition, distro: Distro },
    /// A few files on top of another image.
    Layer {
        definition: Definition,
        base: Image,
        /// Path inside the image, text, mode.
        files: Vec<(String, String, u32)>,
    },
}

impl Image {
    /// Its repository name in Docker, without the tag.
    pub(crate) fn repository(&self) -> String {
        match self {
            Self::Host(distro) => format!("appliance-host-{distro}"),
            Self::Python => "appliance-python".to_owned(),
            Self::Demo { .. } => "appliance-demo".to_owned(),
            Self::Outside => "appliance-outside".to_owned(),
            Self::KamalProxy => "appliance-kamal-proxy".to_owned(),
            Self::Postgres(distro) => format!("appliance-postgres-{distro}"),
            Self::Data => "appliance-data".to_owned(),
        }
    }

    pub(crate) fn recipe(&self) -> Recipe {
        match self {
            Self::Host(distro) => Recipe::Rootfs {
                definition: HOST,
                distro: *distro,
            },
            Self::Python => Recipe::Rootfs {
                definition: PYTHON,
                distro: Distro::Debian13,
            },
            Self::Postgres(distro) => Recipe::Rootfs {
                definition: POSTGRES,
                distro: *distro,
            },
            Self::Data => Recipe::Rootfs {
                definition: DATA,
                distro: Distro::Debian12,
            },
            Self::Demo { version } => {
                let app = DEMO.text("app.py").replacen(
                    "VERSION = \"v1\"",
                    &format!("VERSION = {}", serde_json::Value::from(version.as_str())),
                    1,
                );
                Recipe::Layer {
                    definition: DEMO,
                    base: Self::Python,
                    files: vec![("app/app.py".to_owned(), app, 0o755)],
                }
            }
            Self::KamalProxy => Recipe::Layer {
                definition: KAMAL_PROXY,
                base: Self::Python,
                files: vec![(
                    "usr/local/bin/kamal-proxy.py".to_owned(),
                    KAMAL_PROXY.text("kamal-proxy.py").to_owned(),
                    0o755,
                )],
            },
            Self::Outside => Recipe::Layer {
                definition: OUTSIDE,
                base: Self::Python,
                files: vec![(
                    "usr/local/bin/probe.py".to_owned(),
                    OUTSIDE.text("probe.py").to_owned(),
                    0o755,
                )],
            },
        }
    }

    /// The name under which it is, or will be, found: the tag is a digest of everything it is made from.
    ///
    /// Newer packages on the mirror do not change it; remove the image to take them in.
    pub(crate) fn reference(&self, apt: &Apt) -> ImageRef {
        let mut context = digest::Context::new(&digest::SHA256);
        self.digest(apt, &mut context);
        let hash = hex::encode(context.finish());
        ImageRef(format!("{}:{}", self.repository(), &hash[..16]))
    }

    fn digest(&self, apt: &Apt, context: &mut digest::Context) {
        match self.recipe() {
            Recipe::Rootfs { definition, distro } => {
                definition.digest(context);
                for part in [
                    ROOTFS_SH,
                    distro.suite(),
                    &apt.mirror,
                    &apt.security_mirror,
                    &apt.options.join("\n"),
                ] {
                    context.update(&(part.len() as u64).to_be_bytes());
                    context.update(part.as_bytes());
                }
            }
            Recipe::Layer {
                definition,
                base,
                files,
            } => {
                base.digest(apt, context);
                definition.digest(context);
                for (path, text, mode) in files {
                    context.update(format!("{path}\0{mode:o}\0{}\0", text.len()).as_bytes());
                    context.update(text.as_bytes());
                }
            }
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(distro) => write!(f, "host {distro}"),
            Self::Python => f.write_str("python"),
            Self::Demo { version } => write!(f, "demo {version}"),
            Self::Outside => f.write_str("outside"),
            Self::KamalProxy => f.write_str("kamal-proxy"),
            Self::Postgres(distro) => write!(f, "postgres {distro}"),
            Self::Data => f.write_str("data"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_follows_the_content() {
        let apt = Apt::default();
        let demo = |version: &str| Image::Demo {
            version: version.to_owned(),
        };
        assert_eq!(demo("v1").reference(&apt), demo("v1").reference(&apt));
        assert_ne!(demo("v1").reference(&apt), demo("v2").reference(&apt));
        let elsewhere = Apt {
            mirror: "http://mirror.example/debian".to_owned(),
            ..Apt::default()
        };
        assert_ne!(demo("v1").reference(&apt), demo("v1").reference(&elsewhere));
        assert_ne!(
            Image::Host(Distro::Debian12).reference(&apt),
            Image::Host(Distro::Debian13).reference(&apt)
        );
    }

    #[test]
    fn versions_of_the_demo_app_differ_in_one_line() {
        let text = |version: &str| {
            let image = Image::Demo {
                version: version.to_owned(),
            };
            match image.recipe() {
                Recipe::Layer { files, .. } => files[0].1.clone(),
                Recipe::Rootfs { .. } => String::new(),
            }
        };
        let (one, two) = (text("v1"), text("v\"2"));
        let different: Vec<_> = one.lines().zip(two.lines()).filter(|(a, b)| a != b).collect();
        assert_eq!(different, [("VERSION = \"v1\"", "VERSION = \"v\\\"2\"")]);
    }

    #[test]
    fn distributions_are_known_by_name_and_code_name() {
        assert_eq!(Distro::parse("debian12"), Some(Distro::Debian12));
        assert_eq!(Distro::parse("trixie"), Some(Distro::Debian13));
        assert_eq!(Distro::parse("ubuntu"), None);
    }
}
