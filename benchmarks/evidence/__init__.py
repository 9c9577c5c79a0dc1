"""Evidence for what is said about deformable attention; each module is one command, told in docs/evidence.md."""
