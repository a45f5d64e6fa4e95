//! The reader of `rs.xml`, the service profile of an EGO repository service.
//!
//! What it says in `<ego:EnvironmentVariable name="X">`, and we know, becomes what depsync.toml would
//! say; depsync.toml wins where it says it too. The rest is listed as not used, never guessed. Nothing
//! outside the file is ever resolved.

use std::path::{Path, PathBuf};

use quick_xml::{
    NsReader, XmlVersion,
    events::{BytesStart, Event},
    name::{Namespace, ResolveResult},
};

use super::region_xml::{self, Error};
use crate::model::Rate;

const EGO: &str = "http://www.platform.com/ego/2005/05/schema";

/// What an `rs.xml` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rs {
    /// `REPOSITORY_SERVICE_PORT`
    pub(super) port: Option<u16>,
    /// `RS_STORAGE_DIR`
    pub(super) state_dir: Option<PathBuf>,
    /// `RS_MAX_DOWNLOADS`
    pub(super) max_downloads: Option<u64>,
    /// `DEPSYNC_DOWNLOAD_RATE`, which is ours.
    pub(super) downloads: Option<Rate>,
    /// Variables that mean nothing here, with file and line.
    pub(super) unused: Vec<String>,
}

/// Reads the service profile in `file`.
///
/// # Errors
/// When it cannot be read, is not well-formed, or a variable that we know has no sensible value.
pub(super) fn read(file: &Path) -> Result<Rs, Error> {
    let text = region_xml::read_text(file);
    let text = text.map_err(|source| Error::Read { file: file.to_owned(), source })?;
    parse(&text, file)
}

/// Reads the service profile in `text`; `file` is for messages.
pub(super) fn parse(text: &str, file: &Path) -> Result<Rs, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let wrong = |(at, reason)| region_xml::wrong(text, file, at, reason);
    let mut rs = Rs::default();
    for Variable { at, name, value } in variables(text).map_err(wrong)? {
        let unknown = rs.take(&name, value.trim()).map_err(|reason| wrong((at, reason)))?;
        if unknown {
            let line = region_xml::line(text, at);
            rs.unused.push(format!("{}:{line}: {name} is not used", file.display()));
        }
    }
    Ok(rs)
}

impl Rs {
    /// Takes a variable; whether it means nothing here.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let bad = |what: &str| format!("{name}: \"{value}\" is not {what}");
        match name {
            "REPOSITORY_SERVICE_PORT" => {
                let port = value.parse().ok().filter(|port| *port > 0);
                self.port = Some(port.ok_or_else(|| bad("a port"))?);
            }
            "RS_STORAGE_DIR" => {
                let dir = PathBuf::from(value);
                if !dir.is_absolute() {
                    return Err(bad("an absolute path"));
                }
                self.state_dir = Some(dir);
            }
            "RS_MAX_DOWNLOADS" => {
                let most = value.parse().ok().filter(|most| *most > 0);
                self.max_downloads = Some(most.ok_or_else(|| bad("a number of downloads"))?);
            }
            "DEPSYNC_DOWNLOAD_RATE" => {
                let rate: Result<Rate, _> = value.parse();
                self.downloads = Some(rate.map_err(|error| format!("{name}: {error}"))?);
            }
            _ => return Ok(true),
        }
        Ok(false)
    }
}

/// A byte position, and what is wrong there.
type Wrong = (usize, String);

struct Variable {
    at: usize,
    name: String,
    value: String,
}

/// All environment variables below an activity's specification, in their order.
fn variables(text: &str) -> Result<Vec<Variable>, Wrong> {
    let mut xml = NsReader::from_str(text);
    let mut above: Vec<String> = Vec::new();
    let mut found: Vec<Variable> = Vec::new();
    let mut inside = false;
    loop {
        let at = usize::try_from(xml.buffer_position()).unwrap_or(text.len());
        let (namespace, event) =
            xml.read_resolved_event().map_err(|error| (at, format!("not well-formed: {error}")))?;
        let ours = namespace == ResolveResult::Bound(Namespace(EGO));
        match event {
            Event::Start(tag) => {
                let name = tag.local_name().as_ref().to_owned();
                let specified = above.ends_with(&[
                    "ActivityDescription".to_owned(),
                    "ActivitySpecification".to_owned(),
                ]);
                inside = ours && specified && name == "EnvironmentVariable";
                if inside {
                    found.push(Variable { at, name: name_of(&tag, at)?, value: String::new() });
                }
                above.push(name);
            }
            Event::End(_) => {
                above.pop();
                inside = false;
            }
            Event::Text(part) if inside => push(&mut found, &part),
            Event::CData(part) if inside => push(&mut found, &part),
            Event::GeneralRef(part) if inside => {
                push(&mut found, &region_xml::reference(&part).map_err(|reason| (at, reason))?);
            }
            Event::Eof if above.is_empty() => return Ok(found),
            Event::Eof => return Err((at, "the file ends inside an element".to_owned())),
            _ => {}
        }
    }
}

fn push(found: &mut [Variable], text: &str) {
    if let Some(variable) = found.last_mut() {
        variable.value.push_str(text);
    }
}

fn name_of(tag: &BytesStart<'_>, at: usize) -> Result<String, Wrong> {
    let wrong = |error: &dyn std::fmt::Display| (at, format!("a wrong attribute: {error}"));
    for attribute in tag.attributes() {
        let attribute = attribute.map_err(|error| wrong(&error))?;
        if attribute.key.as_ref() == "name" {
            let value = attribute.normalized_value(XmlVersion::Implicit1_0);
            return Ok(value.map_err(|error| wrong(&error))?.into_owned());
        }
    }
    Err((at, "<EnvironmentVariable> needs a \"name\"".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(variables: &str) -> String {
        format!(
            r#"<?xml version="1.0" encoding="UTF-8"?>
<sc:ServiceDefinition xmlns:sc="http://www.platform.com/ego/2005/05/schema/sc"
    xmlns:ego="http://www.platform.com/ego/2005/05/schema" ServiceName="RS">
  <sc:ActivityDescription>
    <ego:Attribute name="hostType" type="xsd:string">X86_64</ego:Attribute>
    <ego:ActivitySpecification>
      <ego:Command>rs.sh</ego:Command>
{variables}
    </ego:ActivitySpecification>
  </sc:ActivityDescription>
</sc:ServiceDefinition>"#
        )
    }

    #[test]
    fn known_variables_act_and_others_are_listed() {
        let text = profile(
            "<ego:EnvironmentVariable name=\"REPOSITORY_SERVICE_PORT\"> 8099 </ego:EnvironmentVariable>\n\
             <ego:EnvironmentVariable name=\"RS_STORAGE_DIR\">&#47;var/rs &amp; co</ego:EnvironmentVariable>\n\
             <ego:EnvironmentVariable name=\"RS_MAX_DOWNLOADS\">20</ego:EnvironmentVariable>\n\
             <ego:EnvironmentVariable name=\"RS_LOG\">x</ego:EnvironmentVariable>\n\
             <ego:EnvironmentVariable name=\"DEPSYNC_DOWNLOAD_RATE\">5MB/s</ego:EnvironmentVariable>",
        );
        let rs = parse(&text, Path::new("rs.xml")).unwrap();
        let expected = Rs {
            port: Some(8099),
            state_dir: Some("/var/rs & co".into()),
            max_downloads: Some(20),
            downloads: Some("5MB/s".parse().unwrap()),
            unused: vec!["rs.xml:11: RS_LOG is not used".to_owned()],
        };
        assert_eq!(rs, expected);
        let elsewhere = text.replace("ego/2005/05/schema\" Service", "other\" Service");
        assert_eq!(parse(&elsewhere, Path::new("rs.xml")).unwrap(), Rs::default());
    }

    #[test]
    fn wrong_values_name_their_place() {
        for (variable, part) in [
            ("name=\"REPOSITORY_SERVICE_PORT\">0", "is not a port"),
            ("name=\"RS_STORAGE_DIR\">here", "not an absolute path"),
            ("name=\"RS_MAX_DOWNLOADS\">-1", "not a number of downloads"),
            ("name=\"DEPSYNC_DOWNLOAD_RATE\">5 Mbit", "does not end in \"/s\""),
            ("name=\"RS_MAX_DOWNLOADS\">&x;", "entity"),
            ("id=\"x\">", "needs a \"name\""),
        ] {
            let text =
                profile(&format!("<ego:EnvironmentVariable {variable}</ego:EnvironmentVariable>"));
            let said = parse(&text, Path::new("rs.xml")).unwrap_err().to_string();
            assert!(said.starts_with("rs.xml:8:") && said.contains(part), "{variable}: {said}");
        }
        for text in ["<a>", "<a></b>"] {
            assert!(parse(text, Path::new("rs.xml")).is_err(), "{text}");
        }
    }
}
