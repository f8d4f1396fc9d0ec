"""What makes the components one platform. It imports no component: ours are reached exactly as a third party's."""
