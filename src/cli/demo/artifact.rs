//! Artifacts to deploy: a web archive as a build tool makes them, and a folder of pages.
//!
//! The archive is a real zip (APPNOTE 6.3.3: local headers, central directory, its end), with one
//! large file that does not compress, as the libraries in such archives do not.

use std::io::Write;

use flate2::{Compression, write::DeflateEncoder};

/// A library that makes the archive large enough to be kept as an object.
const LIBRARY_BYTES: usize = 2 << 20;

/// A web application of this version.
pub(super) fn web_archive(version: &str) -> Vec<u8> {
    let mut zip = Zip::default();
    let manifest = format!(
        "Manifest-Version: 1.0\r\nImplementation-Title: shop\r\n\
         Implementation-Version: {version}\r\n\r\n"
    );
    zip.add("META-INF/MANIFEST.MF", manifest.as_bytes());
    let descriptor = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
        <web-app xmlns=\"https://jakarta.ee/xml/ns/jakartaee\" version=\"6.0\">\n  \
        <display-name>shop</display-name>\n</web-app>\n";
    zip.add("WEB-INF/web.xml", descriptor.as_bytes());
    zip.add("index.html", format!("<h1>Shop {version}</h1>\n").as_bytes());
    zip.add("WEB-INF/lib/catalog.jar", &noise(LIBRARY_BYTES));
    zip.finish()
}

/// Names and contents of small files.
pub(super) fn pages(count: usize) -> Vec<(String, Vec<u8>)> {
    let page =
        |number| (format!("page-{number:03}.html"), format!("<p>page {number}</p>\n").into_bytes());
    (0..count).map(page).collect()
}

/// Bytes that look random and are always the same (xorshift64*).
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(count).collect()
}

/// A zip archive in memory; sizes below 4 GiB.
#[derive(Default)]
struct Zip {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    entries: u16,
}

impl Zip {
    fn add(&mut self, name: &str, content: &[u8]) {
        let at = size(self.bytes.len());
        let header = header(name, content);
        self.bytes.extend([b"PK\x03\x04", &header.fields[..], &header.name_lengths].concat());
        self.bytes.extend(name.as_bytes());
        self.bytes.extend(&header.packed);
        // Made by Unix; no comment, first disk, no attributes.
        self.directory.extend([b"PK\x01\x02\x14\x03", &header.fields[..]].concat());
        self.directory.extend([&header.name_lengths[..], &[0; 10], &at.to_le_bytes()].concat());
        self.directory.extend(name.as_bytes());
        self.entries += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let (at, length) = (size(self.bytes.len()), size(self.directory.len()));
        self.bytes.extend(&self.directory);
        self.bytes.extend(b"PK\x05\x06\0\0\0\0");
        self.bytes.extend([self.entries.to_le_bytes(), self.entries.to_le_bytes()].concat());
        self.bytes.extend([length.to_le_bytes(), at.to_le_bytes()].concat());
        self.bytes.extend([0, 0]);
        self.bytes
    }
}

/// What the local header and the central directory say alike.
struct Header {
    fields: Vec<u8>,
    name_lengths: Vec<u8>,
    packed: Vec<u8>,
}

fn header(name: &str, content: &[u8]) -> Header {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
    deflate.write_all(content).expect("a vector takes every byte");
    let packed = deflate.finish().expect("a vector takes every byte");
    // Version 2.0, no flags, deflated; 1 January 1980, 0:00.
    let mut fields = vec![20, 0, 0, 0, 8, 0, 0, 0, 0x21, 0];
    fields.extend(crc32fast::hash(content).to_le_bytes());
    fields.extend(size(packed.len()).to_le_bytes());
    fields.extend(size(content.len()).to_le_bytes());
    let length = u16::try_from(name.len()).expect("names are constants");
    Header { fields, name_lengths: [length.to_le_bytes(), [0, 0]].concat(), packed }
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("the demo's artifacts are small")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_ends_as_a_zip_ends() {
        let war = web_archive("1.0");
        let end = &war[war.len() - 22..];
        let field = |at: usize| u32::from_le_bytes(end[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!(&end[..4], b"PK\x05\x06");
        assert_eq!(end[10], 4, "entries");
        assert_eq!(field(12) + field(16) + 22, war.len(), "directory, its place, and the end");
        assert_eq!(&war[field(16)..field(16) + 4], b"PK\x01\x02");
        assert!(war.len() > LIBRARY_BYTES);
        assert_ne!(war, web_archive("1.1"));
    }
}
