"""Object detection in video: head, assignment, losses, boxed footage, and a COCO detector as teacher."""
