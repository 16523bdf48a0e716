//! Which processors a program is for, by its first bytes (ELF specification, file header).

/// Bytes that are looked at.
const HEADER: usize = 20;
/// `e_machine` and Rust's word for it.
const MACHINES: &[(u16, &str)] = &[
    (0x3e, "x86_64"),
    (0xb7, "aarch64"),
    (0x28, "arm"),
    (0xf3, "riscv64"),
];

/// The processors a program is for; `None` if this is no 64-bit or 32-bit little-endian ELF file that we know of.
pub fn architecture(program: &[u8]) -> Option<&'static str> {
    let head = program.get(..HEADER)?;
    let little_endian = head[5] == 1;
    if !head.starts_with(b"\x7fELF") || !little_endian {
        return None;
    }
    let machine = u16::from_le_bytes([head[18], head[19]]);
    MACHINES
        .iter()
        .find(|(number, _)| *number == machine)
        .map(|(_, word)| *word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_is_for_these_processors_and_other_files_for_none() {
        let own = std::env::current_exe().and_then(fs_err::read).expect("readable");
        assert_eq!(architecture(&own), Some(std::env::consts::ARCH));
        let mut other = own[..64].to_vec();
        other[18..20].copy_from_slice(&[0xb7, 0]);
        assert_eq!(architecture(&other), Some("aarch64"));
        assert_eq!(architecture(b"#!/bin/sh\nexit 0 # and so on, and on"), None);
        assert_eq!(architecture(b"\x7fELF"), None);
    }
}
