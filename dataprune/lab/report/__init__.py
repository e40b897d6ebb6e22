"""What runs came to, as pictures and pages."""
