//! The reader of `region.xml`: which clients belong to which region.
//!
//! The schema is ours (`<Regions>`, `<Region name>`, `<IPRange>` or `<ResourceGroup>`). Whatever is
//! not in it, and whatever the region table refuses, is an error that names file, line and column.
//! No entity, no DTD and nothing outside the file is ever resolved.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use quick_xml::{
    Reader, XmlVersion,
    escape::resolve_predefined_entity,
    events::{BytesRef, BytesStart, Event},
};

use crate::model::{AddrRange, Member, Region, RegionName, RegionTable};

/// A table of hundreds of thousands of ranges; beyond that the file is something else.
const MAX_FILE: u64 = 32 << 20;

/// Why a foreign file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read at all.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{}:{line}:{column}: {reason}", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
}

/// Reads the table in `file`.
///
/// # Errors
/// When the file cannot be read, is over 32 MiB or not UTF-8, or is not a region table.
pub fn read(file: &Path) -> Result<RegionTable, Error> {
    let text = read_text(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
    parse(&text, file)
}

/// The text of a file of bounded size.
pub(super) fn read_text(file: &Path) -> io::Result<String> {
    let wrong = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    String::from_utf8(read_bytes(file)?).map_err(wrong)
}

/// The bytes of a file of bounded size.
pub(super) fn read_bytes(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is over 32 MiB"));
    }
    Ok(bytes)
}

/// The elements of a text that the schema does not have, with their lines; as far as it can be read.
pub(super) fn unknown(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut xml = Reader::from_str(text);
    std::iter::from_fn(move || {
        loop {
            let at = usize::try_from(xml.buffer_position()).unwrap_or(text.len());
            let name = match xml.read_event().ok()? {
                Event::Start(tag) | Event::Empty(tag) => tag.name().as_ref().to_owned(),
                Event::Eof => return None,
                _ => continue,
            };
            if !["Regions", "Region", "IPRange", "ResourceGroup"].contains(&name.as_str()) {
                return Some((line(text, at), name));
            }
        }
    })
}

/// Reads the table in `text`; `file` is for messages.
///
/// # Errors
/// When the text is not a region table.
pub fn parse(text: &str, file: &Path) -> Result<RegionTable, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let wrong = |(at, reason): Wrong| wrong(text, file, at, reason);
    let mut parser =
        Parser { xml: Reader::from_str(text), regions: Vec::new(), places: Vec::new() };
    parser.document().map_err(wrong)?;
    let places = parser.places;
    RegionTable::build(parser.regions).map_err(|fault| {
        let place = &places[fault.region];
        wrong((fault.member.map_or(place.at, |member| place.members[member]), fault.to_string()))
    })
}

/// The line of a byte position, counted from 1.
pub(super) fn line(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

/// What is wrong at a byte position of a file's text.
pub(super) fn wrong(text: &str, file: &Path, at: usize, reason: String) -> Error {
    let before = text.get(..at).unwrap_or(text);
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    Error::Wrong { file: file.to_owned(), line: line(text, at), column, reason }
}

/// What a reference stands for: a character by its number, or one of XML's own five.
pub(super) fn reference(part: &BytesRef<'_>) -> Result<String, String> {
    let character = part.resolve_char_ref().ok().flatten().map(String::from);
    let known = || resolve_predefined_entity(part).map(ToOwned::to_owned);
    character.or_else(known).ok_or_else(|| format!("the entity \"&{};\" is not known", &**part))
}

/// A byte position, and what is wrong there.
type Wrong = (usize, String);

/// Where a region and each of its members begin.
struct Place {
    at: usize,
    members: Vec<usize>,
}

struct Parser<'a> {
    xml: Reader<&'a [u8]>,
    regions: Vec<Region>,
    places: Vec<Place>,
}

impl<'a> Parser<'a> {
    fn position(&self) -> usize {
        usize::try_from(self.xml.buffer_position()).expect("a position in a text in memory")
    }

    /// The next event that means something, and where it begins.
    fn next(&mut self) -> Result<(usize, Event<'a>), Wrong> {
        loop {
            let at = self.position();
            let event = self.xml.read_event().map_err(|error| {
                let at = usize::try_from(self.xml.error_position()).unwrap_or(at);
                (at, format!("not well-formed XML: {error}"))
            })?;
            match event {
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
                Event::Text(text) if text.trim().is_empty() => {}
                event => return Ok((at, event)),
            }
        }
    }

    fn document(&mut self) -> Result<(), Wrong> {
        match self.next()? {
            (at, Event::Start(tag)) if named(&tag, "Regions") => {
                no_attributes(at, &tag)?;
                self.inside_regions()?;
            }
            (at, Event::Empty(tag)) if named(&tag, "Regions") => no_attributes(at, &tag)?,
            (at, event) => return Err((at, unexpected(&event, "<Regions>"))),
        }
        match self.next()? {
            (_, Event::Eof) => Ok(()),
            (at, event) => Err((at, unexpected(&event, "nothing after </Regions>"))),
        }
    }

    fn inside_regions(&mut self) -> Result<(), Wrong> {
        loop {
            match self.next()? {
                (_, Event::End(_)) => return Ok(()),
                (at, Event::Start(tag)) if named(&tag, "Region") => {
                    self.begin_region(at, &tag)?;
                    self.inside_region()?;
                }
                (at, Event::Empty(tag)) if named(&tag, "Region") => self.begin_region(at, &tag)?,
                (at, event) => return Err((at, unexpected(&event, "<Region name=\"…\">"))),
            }
        }
    }

    fn begin_region(&mut self, at: usize, tag: &BytesStart<'_>) -> Result<(), Wrong> {
        let mut name: Option<RegionName> = None;
        for attribute in tag.attributes() {
            let attribute =
                attribute.map_err(|error| (at, format!("a wrong attribute: {error}")))?;
            if attribute.key.as_ref() != "name" {
                let key = attribute.key.as_ref();
                return Err((at, format!("<Region> has no attribute \"{key}\", only \"name\"")));
            }
            let value = attribute.normalized_value(XmlVersion::Implicit1_0);
            let value = value.map_err(|error| (at, format!("a wrong attribute: {error}")))?;
            name = Some(value.parse().map_err(|error| (at, format!("{error}")))?);
        }
        let name = name.ok_or_else(|| (at, "<Region> needs a \"name\"".to_owned()))?;
        self.regions.push(Region { name, members: Vec::new() });
        self.places.push(Place { at, members: Vec::new() });
        Ok(())
    }

    fn inside_region(&mut self) -> Result<(), Wrong> {
        loop {
            let (at, event) = self.next()?;
            let member = match &event {
                Event::End(_) => return Ok(()),
                Event::Start(tag) if named(tag, "IPRange") => {
                    no_attributes(at, tag)?;
                    let range: Result<AddrRange, _> = self.text(at)?.parse();
                    Member::Range(range.map_err(|error| (at, error.to_string()))?)
                }
                Event::Start(tag) if named(tag, "ResourceGroup") => {
                    no_attributes(at, tag)?;
                    Member::Group(self.text(at)?)
                }
                event => return Err((at, unexpected(event, "<IPRange> or <ResourceGroup>"))),
            };
            let (region, place) = (self.regions.last_mut(), self.places.last_mut());
            region.expect("begun before its members").members.push(member);
            place.expect("begun before its members").members.push(at);
        }
    }

    /// The text up to the end of the element that began at `start`, trimmed, not empty.
    fn text(&mut self, start: usize) -> Result<String, Wrong> {
        let mut text = String::new();
        loop {
            match self.next()? {
                (_, Event::Text(part)) => text.push_str(&part),
                (_, Event::CData(part)) => text.push_str(&part),
                (at, Event::GeneralRef(part)) => {
                    text.push_str(&reference(&part).map_err(|reason| (at, reason))?);
                }
                (_, Event::End(_)) => break,
                (at, event) => return Err((at, unexpected(&event, "text only"))),
            }
        }
        match text.trim() {
            "" => Err((start, "the element is empty".to_owned())),
            trimmed => Ok(trimmed.to_owned()),
        }
    }
}

fn named(tag: &BytesStart<'_>, name: &str) -> bool {
    tag.name().as_ref() == name
}

fn no_attributes(at: usize, tag: &BytesStart<'_>) -> Result<(), Wrong> {
    if tag.attributes_raw().trim().is_empty() {
        return Ok(());
    }
    Err((at, format!("<{}> takes no attributes", tag.name().as_ref())))
}

fn unexpected(event: &Event<'_>, expected: &str) -> String {
    let found = match event {
        Event::Start(tag) | Event::Empty(tag) => format!("<{}>", tag.name().as_ref()),
        Event::End(tag) => format!("</{}>", tag.name().as_ref()),
        Event::Eof => "the end of the file".to_owned(),
        Event::DocType(_) => "a DOCTYPE".to_owned(),
        _ => "text".to_owned(),
    };
    format!("{found}, where {expected} is expected")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RegionTable, String> {
        super::parse(text, Path::new("region.xml")).map_err(|error| error.to_string())
    }

    #[test]
    fn ranges_are_read() {
        let table = parse(
            r#"<?xml version="1.0" encoding="UTF-8"?>
            <!-- who is where -->
            <Regions>
              <Region name="eu-west">
                <IPRange>10.20.0.0/16</IPRange>            <!-- CIDR, IPv4 or IPv6 -->
                <IPRange> 192.168.1-10.* </IPRange>
                <IPRange><![CDATA[10.9.0.1-10.9.3.255]]></IPRange>
              </Region>
              <Region name="us&#45;east"><IPRange>10.20.7.0&#47;24</IPRange></Region>
              <Region name="nobody"/>
            </Regions>"#,
        )
        .unwrap();
        let who = |addr: &str| table.of_address(addr.parse().unwrap()).map(RegionName::as_str);
        assert_eq!(who("10.20.1.1"), Some("eu-west"));
        assert_eq!(who("10.20.7.1"), Some("us-east"));
        assert_eq!(who("192.168.10.255"), Some("eu-west"));
        assert_eq!(who("10.9.4.0"), None);
        assert_eq!(table.regions().len(), 3);
    }

    #[test]
    fn resource_groups_are_read() {
        let table = parse(
            "<Regions><Region name='eu'><ResourceGroup>Compute &amp; EU</ResourceGroup></Region></Regions>",
        )
        .unwrap();
        assert_eq!(table.of_group("Compute & EU").unwrap().as_str(), "eu");
        assert!(parse("\u{feff}<Regions/>").unwrap().regions().is_empty());
    }

    #[test]
    fn faults_name_line_and_column() {
        for (text, place, part) in [
            ("", "1:1", "the end of the file"),
            ("<Region/>", "1:1", "<Regions> is expected"),
            ("<Regions>\n  <Node/>\n</Regions>", "2:3", "<Node>, where <Region name"),
            ("<Regions><Region/></Regions>", "1:10", "needs a \"name\""),
            ("<Regions><Region name=\"a/b\"/></Regions>", "1:10", "not a region name"),
            ("<Regions><Region name='a' ip='x'/></Regions>", "1:10", "no attribute \"ip\""),
            (
                "<Regions>\n<Region name='é'><IPRange>1</IPRange></Region></Regions>",
                "2:1",
                "not a region name",
            ),
            (
                "<Regions>\n<!-- é --><Region name='e'>\n\t<IPRange>10.0.0</IPRange></Region></Regions>",
                "3:2",
                "four fields",
            ),
            ("<Regions><!-- é --><Region/></Regions>", "1:20", "name"),
            ("<Regions><Region name='e'><IPRange/></Region></Regions>", "1:27", "<IPRange>"),
            ("<Regions><Region name='e'><IPRange> </IPRange></Region></Regions>", "1:27", "empty"),
            (
                "<Regions><Region name='e'><IPRange>&x;</IPRange></Region></Regions>",
                "1:36",
                "entity",
            ),
            ("<Regions><Region name='e'></Regions>", "1:27", "not well-formed"),
            ("<Regions>\n<Region name='e'/>\n<Region name='e'/></Regions>", "3:1", "twice"),
            (
                "<Regions><Region name='e'><IPRange>10.0.0.0/8</IPRange></Region>\n<Region name='u'>\n <ResourceGroup>g</ResourceGroup></Region></Regions>",
                "3:2",
                "resource groups in one table",
            ),
            (
                "<Regions><Region name='e'><IPRange>10.0.0.1-10.0.0.9</IPRange></Region>\n<Region name='u'><IPRange>10.0.0.5-10.0.1.0</IPRange></Region></Regions>",
                "2:18",
                "overlaps, without nesting, 10.0.0.1-10.0.0.9 of \"e\"",
            ),
            ("<!DOCTYPE r [<!ENTITY x 'y'>]><Regions/>", "1:1", "DOCTYPE"),
            ("<Regions/><Regions/>", "1:11", "nothing after"),
            ("<Regions>", "1:10", "the end of the file"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(&format!("region.xml:{place}: ")), "{text}: {error}");
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
