//! sshd has moved: the port it left is closed once its new settings are confirmed.
//!
//! Until then both are open, since a revert moves sshd back.

use std::collections::BTreeSet;

use super::rules::Rules;
use super::{FirewallError, pending};
use crate::host::Host;
use crate::sshd;

/// Takes out of the confirmed rules the SSH ports on which sshd listens no more; which they were.
///
/// Nothing happens while sshd's settings or other rules wait for their confirmation, nor if sshd listens on none of them:
/// whoever moved it then did not do so by us. `now` is Unix seconds.
///
/// # Errors
/// When sshd cannot be asked, or the kernel does not take the rules; those that are there stay.
pub fn close_former_ports(host: &dyn Host, now: u64) -> Result<BTreeSet<u16>, FirewallError> {
    if pending::armed(host, now)?.is_some() || sshd::pending::is_armed(host).map_err(FirewallError::Load)? {
        return Ok(BTreeSet::new());
    }
    let rules = super::confirmed(host)?.and_then(|text| Rules::from_file(&text));
    let listens = sshd::observe(host).map_err(FirewallError::Load)?;
    let (Some(mut rules), Some(listens)) = (rules, listens.map(|sshd| sshd.ports)) else {
        return Ok(BTreeSet::new());
    };
    let former: BTreeSet<u16> = rules.ssh_ports.difference(&listens).copied().collect();
    if former.is_empty() || former == rules.ssh_ports {
        return Ok(BTreeSet::new());
    }
    rules.ssh_ports = &rules.ssh_ports - &former;
    super::write_confirmed(host, &rules.render())?;
    super::load(host, now)?;
    Ok(former)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::CONFIRMED;
    use crate::memory::Memory;

    fn with(ports: &[u16]) -> Memory {
        let host = Memory::bare("debian", "13");
        host.packages.borrow_mut().insert("nftables".to_owned());
        let rules = Rules {
            ssh_ports: ports.iter().copied().collect(),
            ..Rules::default()
        };
        host.put(CONFIRMED, &rules.render());
        host
    }

    fn ports(host: &Memory) -> Vec<u16> {
        let text = super::super::confirmed(host).expect("reads").expect("is there");
        Rules::from_file(&text)
            .expect("rules")
            .ssh_ports
            .into_iter()
            .collect()
    }

    #[test]
    fn the_port_that_sshd_left_is_closed_once_the_new_one_is_confirmed() {
        let host = with(&[22, 2222]);
        host.put(sshd::pending::PENDING, "{}");
        assert!(close_former_ports(&host, 0).expect("waits").is_empty());
        host.remove(sshd::pending::PENDING.as_ref()).expect("goes");
        assert_eq!(close_former_ports(&host, 0).expect("closes"), [2222].into());
        assert_eq!(ports(&host), [22]);
        assert!(close_former_ports(&host, 0).expect("is closed").is_empty());
    }

    #[test]
    fn where_sshd_was_moved_by_somebody_else_nothing_is_closed() {
        let host = with(&[2222]);
        assert!(close_former_ports(&host, 0).expect("looks").is_empty());
        assert_eq!(ports(&host), [2222]);
    }
}
