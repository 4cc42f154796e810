//! The reference importer: all of it is in the ostree-ext library.
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    Ok(ostree_ext::cli::run_from_iter(std::env::args_os()).await?)
}
