//! The stanzas of packages and their repositories.

use super::cursor::{Cursor, Fields, printable};
use super::decode::{Common, refuse};
use super::{Beside, Declarations, Declared, path};
use crate::model::contents::Contents;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::layers::{self, LayerImage};
use crate::model::packages::{Key, LOCAL, OnUnavailable, Repo, is_name, is_versioned};

/// More than any public key of a repository has.
const MAX_KEY: usize = 1 << 20;

/// The stanzas at the top of a drop-in.
pub(super) fn stanzas(
    top: &Fields<'_>,
    common: &Common,
    out: &mut Declarations,
    beside: &dyn Beside,
) -> Result<()> {
    if let Some(place) = top.get("packages") {
        install(&place, common, out, Some(beside))?;
    }
    for (place, name) in requests(top, "override-remove")? {
        if !is_name(name) {
            return Err(not_a_name(&place, name));
        }
        out.packages.remove.entry(name.to_owned()).or_default().insert(common.owner.clone());
    }
    for place in top.list("override-replace")? {
        let spec = match file_of(&place)? {
            Some(file) => local(&file, beside, out)?,
            None => versioned(&place)?,
        };
        out.packages.replace.entry(spec).or_default().insert(common.owner.clone());
    }
    if let Some(place) = top.get("extensions") {
        extension(&place, common, out)?;
    }
    for place in top.list("layers")? {
        out.layers.push(layer(&place, common)?);
    }
    for place in top.list("repos")? {
        out.repos.push(repo(&place, common, beside)?);
    }
    let policy = top.get("on-unavailable").map(|c| on_unavailable(&c)).transpose()?.unwrap_or_default();
    out.packages.on_unavailable.insert(common.owner.clone(), policy);
    Ok(())
}

/// The packages of a list: names, and where there is a directory beside it also files.
fn install(
    list: &Cursor<'_>,
    common: &Common,
    out: &mut Declarations,
    beside: Option<&dyn Beside>,
) -> Result<()> {
    for place in list.list()? {
        let request = match (beside, file_of(&place)?) {
            (Some(beside), Some(file)) => local(&file, beside, out)?,
            (None, Some(_)) => return Err(place.error("an extension has packages by their names only")),
            (_, None) => {
                let name = place.text()?;
                let is_file = ENDINGS.iter().any(|ending| name.ends_with(ending));
                if !is_name(name) || is_file {
                    return Err(not_a_name(&place, name).hint(if is_file { FILE } else { NAME_ONLY }));
                }
                name.to_owned()
            }
        };
        out.packages.install.entry(request).or_default().insert(common.owner.clone());
    }
    Ok(())
}

/// The `local:` of an item that is a map.
fn file_of<'a>(place: &Cursor<'a>) -> Result<Option<Cursor<'a>>> {
    match place.map() {
        Ok(_) => place.fields(&["local"])?.need("local").map(Some),
        Err(_) => Ok(None),
    }
}

/// A package file beside the drop-in; returns the request that names it.
fn local(place: &Cursor<'_>, beside: &dyn Beside, out: &mut Declarations) -> Result<String> {
    let name = place.text()?;
    path::local(name).map_err(|r| refuse(place, r))?;
    if !ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        let why = format!("`{}` is not the file of a package", printable(name));
        return Err(place.error(why).hint("packages end in .deb or .rpm"));
    }
    let value = beside.package(name).map_err(|e| super::decode::located(place, &e))?;
    let request = format!("{LOCAL}{name}");
    let declared = Declared { name: request.clone(), value, at: place.at(), key: place.key.clone() };
    out.local.push(declared);
    Ok(request)
}

fn versioned(place: &Cursor<'_>) -> Result<String> {
    let spec = place.text()?;
    if !is_versioned(spec) {
        return Err(place
            .error(format!("`{}` is not a package with its version", printable(spec)))
            .hint("write NAME=VERSION for apt, NAME-VERSION for rpm"));
    }
    Ok(spec.to_owned())
}

/// An image with packages.
fn extension(place: &Cursor<'_>, common: &Common, out: &mut Declarations) -> Result<()> {
    let fields = place.fields(&["image", "packages"])?;
    let image = image(&fields)?;
    let packages = fields.need("packages")?;
    if packages.list()?.is_empty() {
        return Err(packages.error("an extension is an image with packages: there is none"));
    }
    install(&packages, common, out, None)?;
    out.packages.extensions.entry(image).or_default().insert(common.owner.clone());
    Ok(())
}

fn layer(place: &Cursor<'_>, common: &Common) -> Result<Declared<LayerImage>> {
    let fields = place.fields(&["image", "overwrite"])?;
    let image = image(&fields)?;
    let overwrite = fields.boolean("overwrite")?.unwrap_or_default();
    let value = LayerImage { image: image.clone(), owner: common.owner.clone(), overwrite };
    Ok(Declared { name: image, value, at: place.at(), key: place.key.clone() })
}

/// The reference of an image, perhaps with what the base is to fill in.
fn image(fields: &Fields<'_>) -> Result<String> {
    let place = fields.need("image")?;
    let text = place.text()?;
    layers::check(text)
        .map_err(|why| place.error(why).hint("for example registry.example.com/os-extensions:{version}"))?;
    Ok(text.to_owned())
}

/// How the names of package files end.
const ENDINGS: [&str; 2] = [".deb", ".rpm"];
const FILE: &str = "put the file beside the drop-in, and name it so: {local: FILE}";

fn requests<'a>(top: &Fields<'a>, key: &str) -> Result<Vec<(Cursor<'a>, &'a str)>> {
    top.get(key).map_or(Ok(Vec::new()), |place| place.texts())
}

/// What to write instead of something that is not a name alone.
pub(super) const NAME_ONLY: &str = "only the name: versions belong into override-replace, or into a lock";

pub(super) fn not_a_name(place: &Cursor<'_>, text: &str) -> Error {
    place.error(format!("`{}` is not the name of a package", printable(text)))
}

/// The id of a repository: a file name, and the name of a section in one.
pub(super) fn repository<'a>(place: &Cursor<'a>) -> Result<&'a str> {
    let id = place.text()?;
    let good = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
    if !good || id.is_empty() || id.starts_with('.') || id.len() > 64 {
        return Err(place
            .error(format!("`{}` is not an id of a repository", printable(id)))
            .hint("up to 64 letters, digits and - _ . :"));
    }
    Ok(id)
}

fn on_unavailable(place: &Cursor<'_>) -> Result<OnUnavailable> {
    place.choice(&[
        ("keep", OnUnavailable::Keep),
        ("skip", OnUnavailable::Skip),
        ("fail", OnUnavailable::Fail),
    ])
}

fn repo(place: &Cursor<'_>, common: &Common, beside: &dyn Beside) -> Result<Declared<Repo>> {
    let known =
        ["id", "name", "baseurl", "suites", "components", "metalink", "mirrorlist", "gpgkey", "gpgcheck"];
    let fields = place.fields(&known)?;
    let id = fields.need("id")?;
    let name = repository(&id)?;
    // What people call it is nobody's business here, but other tools' files have it.
    fields.get("name").map(|c| c.text()).transpose()?;
    let baseurl = match fields.get("baseurl") {
        None => Vec::new(),
        Some(place) => texts(&place)?.iter().map(url).collect::<Result<_>>()?,
    };
    let one = |key: &str| fields.get(key).map(|c| url(&(c.clone(), c.text()?))).transpose();
    let (metalink, mirrorlist) = (one("metalink")?, one("mirrorlist")?);
    if baseurl.is_empty() && metalink.is_none() && mirrorlist.is_none() {
        return Err(place.error("`baseurl` is missing").hint("give the URL of the repository"));
    }
    let words = |key: &str| -> Result<Vec<String>> {
        let Some(place) = fields.get(key) else { return Ok(Vec::new()) };
        let word = |(place, text): &(Cursor<'_>, &str)| match text
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'[')
        {
            true if !text.is_empty() && !text.starts_with('-') => Ok((*text).to_owned()),
            _ => Err(place.error(format!("`{}` is not one word", printable(text)))),
        };
        texts(&place)?.iter().map(word).collect()
    };
    let unsigned = fields.boolean("gpgcheck")? == Some(false);
    let key = match fields.get("gpgkey") {
        Some(key) if unsigned => return Err(key.error("`gpgcheck: false` says that nothing is signed")),
        Some(place) => Some(self::key(&place, beside)?),
        None if unsigned => None,
        None => {
            return Err(place
                .error("`gpgkey` is missing")
                .hint("give the keys that sign it, or say that nobody does with gpgcheck: false"));
        }
    };
    let repo = Repo {
        owner: common.owner.clone(),
        baseurl,
        suites: words("suites")?,
        components: words("components")?,
        metalink,
        mirrorlist,
        key,
    };
    Ok(Declared { name: name.to_owned(), value: repo, at: id.at(), key: id.key })
}

/// One text, or a list of them.
fn texts<'a>(place: &Cursor<'a>) -> Result<Vec<(Cursor<'a>, &'a str)>> {
    match place.list() {
        Ok(_) => place.texts(),
        Err(_) => Ok(vec![(place.clone(), place.text()?)]),
    }
}

fn url((place, text): &(Cursor<'_>, &str)) -> Result<String> {
    let known = ["http://", "https://", "mirror+http://", "mirror+https://"];
    let rest = known.iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(rest) = rest.filter(|_| text.bytes().all(|b| b.is_ascii_graphic() && b != b'"')) else {
        return Err(place
            .error(format!("`{}` is not a URL that packages can be fetched from", printable(text)))
            .hint("http:// and https:// are known"));
    };
    if rest.split('/').next().is_some_and(|host| host.contains('@')) {
        return Err(place.error("a URL must not hold a password: it would be in every status and log").hint(
            "put it into the package manager's own file of credentials in the image, or a mirror without one",
        ));
    }
    Ok((*text).to_owned())
}

/// A path of the target, or the keys themselves.
fn key(place: &Cursor<'_>, beside: &dyn Beside) -> Result<Key> {
    if let Ok(text) = place.text() {
        let text = text.strip_prefix("file://").unwrap_or(text);
        let normal = path::declared(text, false).map_err(|r| refuse(place, r))?;
        return Ok(Key::File(normal));
    }
    let (Contents::Here(key), _) = super::decode::contents(place, beside)? else {
        return Err(place
            .error_of(ErrorKind::Unsupported, "a key cannot be downloaded")
            .hint("declare it as a file with the same source:, and name its path here"));
    };
    if key.len() > MAX_KEY {
        return Err(place.error("is larger than any key"));
    }
    Ok(Key::Inline(key))
}
