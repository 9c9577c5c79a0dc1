"""Drawing: detections on their pictures."""
