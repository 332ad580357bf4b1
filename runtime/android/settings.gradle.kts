// For Android Studio. `pom.xml` builds and tests the same sources on a host.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "mtu"

include(":core", ":onnx", ":executorch", ":android", ":sample")
