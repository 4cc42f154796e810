//! The containers-registries.conf(5) by which a host finds the images of a bundle under their own names.

use crate::sys::policy::full_name;

/// The text for repositories that are served under other names, each by its number.
pub fn conf<'a>(repositories: impl Iterator<Item = &'a str>, served: impl Fn(usize) -> String) -> String {
    let table = |(number, name): (usize, &str)| {
        let (prefix, location) = (full_name(name), served(number));
        format!("[[registry]]\nprefix = {prefix:?}\nlocation = {location:?}\ninsecure = true\n")
    };
    repositories.enumerate().map(table).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_repository_has_a_place_of_its_own() {
        let served = |number| format!("127.0.0.1:5000/t/{number}");
        assert_eq!(
            conf(["r.io:5000/os", "me/app"].into_iter(), served),
            "[[registry]]\nprefix = \"r.io:5000/os\"\nlocation = \"127.0.0.1:5000/t/0\"\ninsecure = true\n\
             [[registry]]\nprefix = \"docker.io/me/app\"\nlocation = \"127.0.0.1:5000/t/1\"\ninsecure = true\n"
        );
    }
}
