//! SHA-256 as text.

/// Lower-case hexadecimal SHA-256.
pub(crate) fn hex(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// Lower-case hexadecimal SHA-256 of everything a reader holds.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of(reader: &mut dyn std::io::Read) -> std::io::Result<String> {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hex::encode(context.finish())),
            count => context.update(&buffer[..count]),
        }
    }
}
