//! Who uses the images of templates.

/// Knows who uses an image: sandboxes, snapshots, whatever keeps one open or will open it
/// again.
pub trait ImageUsers {
    /// The users of the image with this SHA-256, in lower-case hex, as people know them.
    ///
    /// # Errors
    /// It cannot be found out. Nothing is deleted then.
    fn users_of(&self, image_sha256: &str) -> std::io::Result<Vec<String>>;
}

/// For callers that know that nobody uses anything.
#[derive(Clone, Copy, Debug)]
pub struct NoUsers;

impl ImageUsers for NoUsers {
    fn users_of(&self, _image_sha256: &str) -> std::io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

impl<F: Fn(&str) -> std::io::Result<Vec<String>>> ImageUsers for F {
    fn users_of(&self, image_sha256: &str) -> std::io::Result<Vec<String>> {
        self(image_sha256)
    }
}
