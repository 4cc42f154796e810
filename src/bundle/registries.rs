//! The containers-registries.conf(5) by which a host finds the images of a bundle under their own names.

/// The text for repositories that are served under other names, each by its number.
pub fn conf(repositories: impl Iterator<Item = String>, served: impl Fn(usize) -> String) -> String {
    let table = |(number, prefix): (usize, String)| {
        let location = served(number);
        let text = |text: String| toml::Value::String(text);
        format!("[[registry]]\nprefix = {}\nlocation = {}\ninsecure = true\n", text(prefix), text(location))
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
            conf(["r.io:5000/os", "docker.io/me/app"].into_iter().map(String::from), served),
            "[[registry]]\nprefix = \"r.io:5000/os\"\nlocation = \"127.0.0.1:5000/t/0\"\ninsecure = true\n\
             [[registry]]\nprefix = \"docker.io/me/app\"\nlocation = \"127.0.0.1:5000/t/1\"\ninsecure = true\n"
        );
    }
}
