//! The network that hosts and outsiders share: a bridge with both address families.

use std::collections::HashMap;

use aws_lc_rs::digest;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};

use crate::engine::Sandbox;
use crate::error::{SandboxError, is_absent, is_conflict};

/// The label on everything we make, so that it can be found and removed.
pub(crate) const LABEL: &str = "appliance.sandbox";

/// The network used unless told otherwise.
pub(crate) const DEFAULT: &str = "appliance-sandbox";

impl Sandbox {
    /// Makes sure that a network with IPv4 and IPv6 is there.
    ///
    /// Docker chooses the IPv4 subnet; the IPv6 one is a unique local /64 (RFC 4193) derived from the name, since
    /// engines before 27 do not choose one themselves.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if Docker refuses.
    pub(crate) async fn ensure_network(&self, name: &str) -> Result<(), SandboxError> {
        let docker = self.docker();
        let doing = || SandboxError::docker(format!("make network {name}"));
        match docker
            .inspect_network(name, None::<bollard::query_parameters::InspectNetworkOptions>)
            .await
        {
            Ok(_) => return Ok(()),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(doing()(error)),
        }
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            enable_ipv6: Some(true),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(unique_local(name)),
                    ..IpamConfig::default()
                }]),
                ..Ipam::default()
            }),
            labels: Some(HashMap::from([(LABEL.to_owned(), "network".to_owned())])),
            ..NetworkCreateRequest::default()
        };
        match docker.create_network(request).await {
            Ok(_) => Ok(()),
            // Another process was quicker.
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(doing()(error)),
        }
    }
}

/// The /64 of a network: `fd` and 56 bits of a digest of its name.
fn unique_local(name: &str) -> String {
    let hash = digest::digest(&digest::SHA256, name.as_bytes());
    let byte = hash.as_ref();
    format!(
        "fd{:02x}:{:02x}{:02x}:{:02x}{:02x}:{:02x}{:02x}::/64",
        byte[0], byte[1], byte[2], byte[3], byte[4], byte[5], byte[6]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_get_different_unique_local_prefixes() {
        let one = unique_local("one");
        assert!(one.starts_with("fd") && one.ends_with("::/64"), "{one}");
        let address: std::net::Ipv6Addr = one.trim_end_matches("/64").parse().expect("an address");
        assert!(address.is_unique_local());
        assert_ne!(one, unique_local("two"));
    }
}
