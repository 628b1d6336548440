//! What is wrong with the cluster is one clear sentence, and what runs is untouched.
